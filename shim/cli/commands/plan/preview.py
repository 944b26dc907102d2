"""A preview of what would be resident: the core itself, fed with the configuration alone.

Pinned models come first. The other models follow in the order of the configuration while they fit.
The preview asks no keeper, and it loads and downloads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budget import actions as act
from budget import events as ev
from budget.books.engines import EngineRecord
from budget.books.ledger import LedgerView
from budget.core import BudgetCore
from budget.errors import KeepwarmError, LoadFailed
from budget.eviction.policies import make_policy
from budget.footprint import HOST, Placement
from shim.cli.console.output import size, sizes
from shim.config import Config, ModelEntry, fetch_hub_file
from shim.keeper.catalog.broken_models import BrokenModel
from shim.keeper.catalog.catalog import Catalog, Prepared, build_catalog


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One model of a plan. Without a placement it cannot be run, or runs elsewhere."""

    name: str
    role: str | None
    pinned: bool
    resident: bool
    reason: str
    placement: Placement | None = None

    @property
    def kind(self) -> str | None:
        """`whole`, `spread`, `split` or `cpu`."""
        if self.placement is None:
            return None
        args, placed = self.placement.args, self.placement
        if not args.n_gpu_layers:
            return "cpu"
        if args.n_gpu_layers <= placed.n_layers:
            return "split"
        return "spread" if args.tensor_split else "whole"

    @property
    def where(self) -> str:
        """The devices, with the layers on each where there are several."""
        if self.placement is None:
            return ""
        args = self.placement.args
        if not args.tensor_split:
            return self.placement.main_device
        parts = zip(args.layer_devices, args.tensor_split, strict=True)
        return ", ".join(f"{device} ({layers})" for device, layers in parts)

    def to_json(self) -> dict[str, Any]:
        """The row as `plan --json` prints it."""
        placed = self.placement
        return {
            "name": self.name,
            "role": self.role,
            "pinned": self.pinned,
            "kind": self.kind,
            "n_gpu_layers": placed.args.n_gpu_layers if placed else None,
            "tensor_split": list(placed.args.tensor_split) if placed else None,
            "bytes": dict(placed.bookings) if placed else None,
            "total_bytes": placed.total_bytes if placed else None,
            "resident": self.resident,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """The books once everything that fits is loaded, and every model.

    `devices` are the devices of the configuration in its order, and the host.
    """

    devices: tuple[LedgerView, ...]
    models: tuple[PlanRow, ...]

    @property
    def first(self) -> LedgerView:
        """The books of the first device."""
        return self.devices[0]

    def to_json(self) -> dict[str, Any]:
        """What `plan --json` prints."""
        return {
            **_books(self.first),
            "devices": [_books(view) for view in self.devices],
            "models": [row.to_json() for row in self.models],
        }


def make_plan(config: Config) -> Preview:
    """What would be resident of a configuration on this machine.

    Raises:
        ConfigError: the budget's device is not there, or the pins do not fit together.
    """
    here, missing = _downloaded(config)
    catalog = build_catalog(here)
    missing |= catalog.errors
    catalog.broken_models.update({name: BrokenModel(error) for name, error in missing.items()})
    for name in missing:
        catalog.prepared.pop(name, None)
    simulation = _Simulation(catalog)
    reasons = simulation.run()
    rows = tuple(
        _row(name, entry, catalog, simulation, reasons) for name, entry in config.models.items()
    )
    views = {view.device: view for view in simulation.core.ledgers()}
    names = dict.fromkeys([*catalog.devices.names, HOST])
    return Preview(tuple(views[name] for name in names if name in views), rows)


def _books(view: LedgerView) -> dict[str, Any]:
    return {
        "device": view.device,
        "limit_bytes": view.limit_bytes,
        "reserved_bytes": view.reserved_bytes,
        "free_bytes": view.free_bytes,
    }


def _downloaded(config: Config) -> tuple[Config, dict[str, KeepwarmError]]:
    """The configuration without models whose Hub files are missing, and an error for each of these."""
    missing: dict[str, KeepwarmError] = {}
    for name, entry in config.models.items():
        if entry.hf is None:
            continue
        try:
            fetch_hub_file(entry.hf, offline=True)
        except KeepwarmError:
            missing[name] = LoadFailed(
                f"{entry.hf} is not downloaded yet.", hint=f"Run `keepwarm load {name}`."
            )
    kept = {name: entry for name, entry in config.models.items() if name not in missing}
    return config.model_copy(update={"models": kept}), missing


def _row(
    name: str, entry: ModelEntry, catalog: Catalog, simulation: _Simulation, reasons: dict[str, str]
) -> PlanRow:
    if entry.remote:
        return PlanRow(
            name, entry.role, pinned=False, resident=False, reason=f"runs at {entry.url}"
        )
    if name in catalog.errors:
        reason = str(catalog.errors[name])
        return PlanRow(name, entry.role, entry.pinned, resident=False, reason=reason)
    prepared = catalog.prepared[name]
    engine = simulation.engine(prepared)
    placement = prepared.placements[simulation.option(engine)]
    reason = "; ".join(text for text in (reasons[name], placement.reason) if text)
    return PlanRow(name, entry.role, entry.pinned, engine.resident, reason, placement)


class _Simulation:
    """A core in which every load succeeds at once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        policy = make_policy(catalog.config.budget.policy)
        self.core = BudgetCore(catalog.pools, catalog.models(), catalog.specs(), policy)

    def engine(self, prepared: Prepared) -> EngineRecord:
        """The record of a model's engine."""
        return self.core.state.residents[prepared.engine_id]

    def option(self, engine: EngineRecord) -> int:
        """The option in use, or the one that a load would use."""
        if engine.resident:
            return engine.option_index
        return next(iter(self.core.state.fitting.feasible(engine)), 0)

    def run(self) -> dict[str, str]:
        """Load the pinned models, then other models while they fit; returns the reason of each model."""
        self._tell(ev.Started())
        local = self._catalog.prepared.values()
        reasons = {p.name: self._pinned_reason(p) for p in local if p.entry.pinned}
        for prepared in local:
            if not prepared.entry.pinned:
                reasons[prepared.name] = self._place(prepared)
        return reasons

    def _tell(self, event: ev.Event) -> None:
        todo = self.core.handle(event, 0.0)
        while todo:
            action = todo.pop(0)
            if isinstance(action, act.StartLoad):
                finished = ev.LoadFinished(action.engine_id, action.generation)
                todo += self.core.handle(finished, 0.0)

    def _pinned_reason(self, prepared: Prepared) -> str:
        why = "pin = true" if prepared.entry.pin else f"its role is {prepared.entry.role}"
        taken = self._sizes(dict(self.engine(prepared).bookings))
        return f"pinned ({why}): {taken} that eviction may not touch"

    def _place(self, prepared: Prepared) -> str:
        engine = self.engine(prepared)
        if engine.resident:
            others = [n for n in self._names(engine) if n != prepared.name]
            return f"shares the engine of {', '.join(others)}"
        fitting = self.core.state.fitting
        feasible = fitting.feasible(engine)
        if not feasible:
            device, limit, pinned, asked = fitting.shortfall(engine)
            return (
                f"never fits: asks for {size(asked)} on {device}, where the limit is {size(limit)} "
                f"and pinned models hold {size(pinned)}"
            )
        free = {view.device: view.free_bytes for view in self.core.ledgers()}
        for index in feasible:
            bookings = engine.spec.options[index].bookings
            if all(amount <= free[device] for device, amount in bookings):
                self._tell(ev.RequestArrived(prepared.name, "plan", prepared.name, "load"))
                room = {device: free[device] for device, _ in bookings}
                return f"fits: {self._sizes(dict(bookings))} of {self._sizes(room)} free"
        return self._too_much(engine, dict(engine.spec.options[feasible[0]].bookings), free)

    def _too_much(self, engine: EngineRecord, asked: dict[str, int], free: dict[str, int]) -> str:
        choice = self.core.state.admission.choose(engine, 0.0, may_drain=None)
        left = {device: free[device] for device in asked}
        text = f"loaded when asked for: {self._sizes(asked)} with {self._sizes(left)} free"
        if choice is None or not choice.victims:
            return text
        names = [n for v in choice.victims for n in self._names(self.core.state.residents[v])]
        return f"{text}; would evict {', '.join(names)}"

    def _sizes(self, by_device: dict[str, int]) -> str:
        """Bytes by device, without the connections that the core counts as well."""
        return sizes({d: n for d, n in by_device.items() if d in self._catalog.limits})

    def _names(self, engine: EngineRecord) -> tuple[str, ...]:
        return self._catalog.engines[engine.engine_id].names
