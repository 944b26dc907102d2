"""What would happen if models were asked for: answered without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budget.admission.state import CoreState


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The answer for one or more models.

    `together`: whether all of them can be resident at once, beside what others pinned. `evicted`: the
    models that would leave now for each, () for none, without those that were released (no program wants
    them to stay); None where engines in use or pins are in the way now. `bytes` are those of each model's
    placement (its present one, or the first), `limits` those of the devices.
    """

    together: bool
    evicted: Mapping[str, tuple[str, ...] | None]
    bytes: Mapping[str, Mapping[str, int]]
    limits: Mapping[str, int]

    def to_wire(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return {
            "together": self.together,
            "evicted": {m: None if e is None else list(e) for m, e in self.evicted.items()},
            "bytes": {model: dict(by_device) for model, by_device in self.bytes.items()},
            "limits": dict(self.limits),
        }


def what_if(state: CoreState, models: Sequence[str], now: float) -> WhatIf:
    """What would happen if these models were asked for now.

    Args:
        state: the core's, to be read.
        models: configured names.
        now: the time on the clock of the core's events, in seconds.

    Raises:
        UnknownModel: one is not configured.
        KeepwarmError: one cannot be run, with the reason.
    """
    for model in models:
        if model not in state.models:
            raise state.why_unknown(model)
    engines = {model: state.residents[state.models[model].engine_id] for model in models}
    bookings = {
        m: e.bookings or e.spec.options[e.option_index].bookings for m, e in engines.items()
    }
    return WhatIf(
        together=state.fitting.together(list(dict.fromkeys(engines.values()))),
        evicted={model: _evicted(state, model, now) for model in models},
        bytes={model: dict(booked) for model, booked in bookings.items()},
        limits={ledger.device: ledger.limit_bytes for ledger in state.residents.books},
    )


def _evicted(state: CoreState, model: str, now: float) -> tuple[str, ...] | None:
    engine = state.residents[state.models[model].engine_id]
    if engine.bookings:
        return ()
    choice = state.admission.choose(engine, now, may_drain=None, measured=True)
    if choice is None:
        return None
    leaving = {one for one in choice.victims if not state.residents[one].released}
    return tuple(sorted(m.name for m in state.models.values() if m.engine_id in leaving))
