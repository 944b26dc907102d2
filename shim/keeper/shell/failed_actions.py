"""The events that the core waits for after an action, for actions that failed to begin."""

from __future__ import annotations

from typing import assert_never

from backends.machine.shortages import refused
from budget import actions as act
from budget import events as ev
from budget.books.states import DORMANT
from budget.core import BudgetCore
from budget.errors import InternalError, KeepwarmError
from shim.keeper.shell.fault_counts import text_of

MUST_ARRIVE = (
    ev.LoadEndedBadly,
    ev.UnloadFinished,
    ev.EngineGone,
    ev.StageFinished,
    ev.LeaseEnded,
    ev.RequestCancelled,
    ev.ClientGone,
)
"""Events that give a resource back. If the core fails at one, it gets the event again."""


def answer_of(action: act.Action, error: BaseException) -> ev.Event | None:
    """The event that ends an action which raised before any work on it began; None: none is owed."""
    match action:
        case act.StartLoad():
            wire = _typed(error).to_wire()
            return ev.LoadEndedBadly(action.engine_id, action.generation, wire)
        case act.Unload():
            return ev.UnloadFinished(action.engine_id, action.generation)
        case act.StageFile():
            return ev.StageFinished(action.engine_id, 0)
        case act.Grant():
            # No client can end a lease that was not delivered.
            held = action.slot is not None
            return ev.LeaseEnded(action.request_id, action.client_id) if held else None
        case act.Prepare() | act.StopStaging() | act.SetTimer():
            return None
        case act.Deny() | act.Revoke() | act.AskYield():
            return None
        case act.Record() | act.Alert() | act.LowMemory() | act.Fault():
            return None
    assert_never(action)


def _typed(error: BaseException) -> KeepwarmError:
    if isinstance(error, KeepwarmError):
        return error
    if (short := refused(error, "the keeper could not begin a load")) is not None:
        return short
    return InternalError(f"the keeper could not begin a load: {text_of(error)}.")


def is_due(event: ev.Event, core: BudgetCore) -> bool:
    """Whether the core still waits for an event that it has failed to take."""
    state = core.state
    match event:
        case ev.LoadEndedBadly() | ev.UnloadFinished() | ev.EngineGone():
            engine = state.residents.get(event.engine_id)
            same_generation = engine is not None and engine.generation == event.generation
            return same_generation and engine is not None and engine.state not in DORMANT
        case ev.StageFinished():
            return core.prefetcher.staging == event.engine_id
        case ev.LeaseEnded():
            return event.request_id in state.leases
        case ev.RequestCancelled():
            return state.queue.get(event.request_id) is not None
    return True
