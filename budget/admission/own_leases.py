"""A request that would wait for leases which its own caller holds, and so for ever."""

from __future__ import annotations

from collections.abc import Collection

from budget.admission.state import CoreState
from budget.errors import InvalidRequest
from budget.events import Want


def check_own_leases(state: CoreState, model: str, want: Want, held: Collection[str]) -> None:
    """Refuse a request that cannot be granted as long as these leases are held.

    It may be that they hold all slots of its engine, or bytes without which no placement of it fits. Leases
    of other callers do not count, because these end.

    Args:
        state: what is resident and leased.
        model: what is asked for.
        want: what it is asked for.
        held: leases that the caller holds and cannot give back before it has an answer.

    Raises:
        InvalidRequest: names the models of those leases.
    """
    engine = state.residents[state.models[model].engine_id]
    found = [
        (state.leases[lease].leases[lease].model, lease) for lease in held if lease in state.leases
    ]
    own = {lease: state.leases[lease] for _, lease in found}
    if engine.resident:
        slots = sum(1 for other in own.values() if other is engine)
        if want != "lease" or slots < engine.spec.slots:
            return
        of, what = [engine], "slots" if slots > 1 else "only slot"
    else:
        of, what = [other for other in own.values() if other is not engine], "bytes"
        if not of or not state.fitting.feasible(engine) or state.fitting.fits_beside(engine, of):
            return
    models = sorted({name for name, lease in found if own[lease] in of})
    names = ", ".join(models)
    hint = "Read the stream to its end, or close what is open first"
    raise InvalidRequest(
        f"{model} is asked for inside a stream or client of {names}, which holds the {what} that it needs:"
        " the call would wait for itself.",
        hint=f"{hint}; or give [models.{model}] more slots." if what != "bytes" else f"{hint}.",
        model=model,
        inside=models,
    )
