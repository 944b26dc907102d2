"""Impossible numbers and names are refused by the core itself, before anything changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from budget import events as ev
from budget.books.engines import EngineSpec, ModelSpec, PlacementOption
from budget.errors import InternalError, InvalidRequest, KeepwarmError
from budget.settings import CoreSettings
from budget.snapshot import snapshot
from tests.budget.machine import Shell, engine, model, shell_of

HALF = "\ud800"
"""Half a surrogate: a text that cannot be sent."""
GOOD = ev.RequestArrived("r", "c", "a")
SPECS = (engine("a", 50), engine("b", 60))
MODELS = (model("a"), model("b"))


def bad(event: Any, **changes: Any) -> Any:
    """The same event with fields that no type checker would pass."""
    return replace(event, **changes)


def at_rest() -> Shell:
    """A core with a lease, a request that waits, and declared uses."""
    shell = shell_of(100, SPECS, MODELS)
    shell.serve("a", "holder")
    shell.ask("b", "waiter")
    shell.declare("a", "b", client="planner")
    return shell


def everything(shell: Shell) -> str:
    """All that can be seen of a core."""
    return repr((snapshot(shell.core, shell.now), list(shell.core.state.residents)))


def refused(shell: Shell, event: Any, kind: type[KeepwarmError]) -> None:
    """It raises, nothing has changed, and the next requests are served as if it had never come."""
    before = everything(shell)
    with pytest.raises(kind):
        shell.core.handle(event, shell.now)
    assert everything(shell) == before
    assert shell.core.check() == []
    for lease in list(shell.leases):
        shell.end(lease)
    shell.settle()
    assert not shell.waiting


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": "high"},
        {"priority": [1]},
        {"priority": {}},
        {"priority": 1.5},
        {"priority": math.nan},
        {"priority": True},
        {"priority": 10**400},
        {"deadline": math.nan},
        {"deadline": math.inf},
        {"deadline": -math.inf},
        {"deadline": 1e308},
        {"deadline": 10**400},
        {"deadline": "soon"},
        {"deadline": False},
        {"request_id": HALF},
        {"request_id": math.nan},
        {"request_id": 7},
        {"request_id": None},
        {"request_id": ""},
        {"request_id": ["r"]},
        {"client_id": HALF},
        {"client_id": {}},
        {"model": HALF},
        {"model": 0},
        {"model": ["a"]},
        {"want": "everything"},
        {"want": ["lease"]},
        {"want": None},
        {"plan": HALF},
        {"plan": 1},
        {"plan": 0},
        {"plan": ""},
        {"owner": 0},
        {"owner": HALF},
        {"owner": 4711},
        {"preemptible": "yes"},
        {"persist": 1},
    ],
    ids=repr,
)
def test_a_request_of_the_wrong_types_is_refused(changes: dict[str, Any]) -> None:
    """As one malformed message once stopped all clients."""
    refused(at_rest(), bad(GOOD, **changes), InvalidRequest)


@pytest.mark.parametrize(
    "event",
    [
        bad(ev.HintGiven("release", "a"), kind="explode"),
        bad(ev.HintGiven("release", "a"), kind=["unload"]),
        bad(ev.HintGiven("release", "a"), model=HALF),
        bad(ev.UsesDeclared("c", ("a",)), models=["a"]),
        bad(ev.UsesDeclared("c", ("a",)), models=("a", 1)),
        bad(ev.UsesDeclared("c", ("a",)), models="ab"),
        bad(ev.UsesDeclared("c", ("a",)), plan=2.0),
        bad(ev.UsesDeclared("c", ("a",)), client_id=None),
        bad(ev.UsesDeclared("c", ("a",)), any_order=1),
        bad(ev.LeaseEnded("r1", "holder"), request_id=math.nan),
        bad(ev.LeaseEnded("r1", "holder"), request_id=["r1"]),
        bad(ev.LeaseEnded("r1", "holder"), client_id=None),
        bad(ev.LeaseYielded("r1", "holder"), request_id={}),
    ],
    ids=repr,
)
def test_what_else_clients_send_is_refused_as_theirs(event: Any) -> None:
    """Hints, declared uses and leases of the wrong types, and nothing changes."""
    refused(at_rest(), event, InvalidRequest)


DEAD = {"error": "EngineDied", "message": "scripted"}


@pytest.mark.parametrize(
    "event",
    [
        bad(ev.RequestCancelled("r"), request_id=None),
        bad(ev.ClientGone("c"), client_id=HALF),
        bad(ev.LeaseTaken("r1", DEAD), error="dead"),
        bad(ev.EngineGone("a", 1, DEAD), error=None),
        bad(ev.EngineGone("a", 1, DEAD), engine_id=["a"]),
        bad(ev.EngineGone("a", 1, DEAD), generation="1"),
        ev.LoadFinished("a", 1),
        ev.UnloadFinished("a", 1),
        ev.LoadEndedBadly("a", 1, DEAD),
        bad(ev.EngineMeasured("a", 1, ()), bookings=(("gpu", 1.5),)),
        bad(ev.EngineMeasured("a", 1, ()), bookings=(("gpu", math.nan),)),
        bad(ev.EngineMeasured("a", 1, ()), bookings=(("gpu", True),)),
        bad(ev.EngineMeasured("a", 1, ()), bookings={"gpu": 1}),
        bad(ev.EngineMeasured("a", 1, ()), bookings=(("gpu",),)),
        ev.EngineMeasured("a", 1, (("gpu", -1),)),
        ev.EngineMeasured("a", 1, (("nowhere", 1),)),
        ev.EngineMeasured("a", 1, (("gpu", 1), ("gpu", 1))),
        ev.EngineEstimated("a", ()),
        ev.EngineEstimated("z", ()),
        ev.EngineEstimated("a", (PlacementOption((("gpu", 1),), math.nan),)),
        ev.EngineEstimated("a", (PlacementOption((("gpu", 1),), -1.0),)),
        bad(ev.DeviceMeasured("gpu", 1), available_bytes=math.inf),
        bad(ev.DeviceMeasured("gpu", 1), free_bytes=1.5),
        bad(ev.DeviceMeasured("gpu", 1), reserve_bytes=None),
        bad(ev.DeviceMeasured("gpu", 1), device=["gpu"]),
        bad(ev.StageFinished("a", 1), read_bytes="many"),
    ],
    ids=repr,
)
def test_what_engines_and_the_keeper_report_is_refused_as_a_bug(event: Any) -> None:
    """Of the wrong type, of another generation, or impossible in this one; nothing changes."""
    refused(at_rest(), event, InternalError)


@pytest.mark.parametrize(
    "event",
    [
        ev.Reconfigured((ModelSpec("a", "a", keep_alive_s=math.nan),), SPECS, {"gpu": 1}),
        ev.Reconfigured((ModelSpec("a", "a", keep_alive_s=-2.0),), SPECS, {"gpu": 1}),
        ev.Reconfigured((bad(model("a"), priority="x"),), SPECS, {"gpu": 1}),
        ev.Reconfigured((bad(model("a"), max_queue=1.5),), SPECS, {"gpu": 1}),
        ev.Reconfigured((bad(model("a"), name=HALF),), SPECS, {"gpu": 1}),
        ev.Reconfigured(MODELS, (EngineSpec("a", (), 0),), {"gpu": 1}),
        ev.Reconfigured(
            MODELS, (EngineSpec("a", (PlacementOption((("gpu", -1),), 1.0),)),), {"gpu": 1}
        ),
        ev.Reconfigured(
            MODELS, (EngineSpec("a", (PlacementOption((("x", 1),), 1.0),)),), {"gpu": 1}
        ),
        ev.Reconfigured(MODELS, (bad(SPECS[0], options=(1,)),), {"gpu": 1}),
        ev.Reconfigured(MODELS, SPECS, {"gpu": -1}),
        bad(ev.Reconfigured(MODELS, SPECS, {"gpu": 1}), limits={"gpu": math.inf}),
        bad(ev.Reconfigured(MODELS, SPECS, {"gpu": 1}), limits=[1]),
        bad(ev.Reconfigured(MODELS, SPECS, {"gpu": 1}), errors={"a": "bad"}),
        ev.Reconfigured(MODELS, SPECS, {"gpu": 1}, CoreSettings(max_wait_s=math.nan)),
        ev.Reconfigured(MODELS, SPECS, {"gpu": 1}, CoreSettings(max_wait_s=-1.0)),
        ev.Reconfigured(MODELS, SPECS, {"gpu": 1}, bad(CoreSettings(), max_queue="many")),
    ],
    ids=lambda event: "",
)
def test_a_configuration_of_the_wrong_types_is_refused(event: ev.Reconfigured) -> None:
    """Whatever read it; nothing changes."""
    refused(at_rest(), event, InternalError)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, -1.0])
def test_a_clock_that_goes_back_or_is_none_is_refused(now: float) -> None:
    """Every wait and every timer is counted on it."""
    shell = at_rest()
    before = everything(shell)
    with pytest.raises(InternalError, match="clock"):
        shell.core.handle(ev.TimerDue(), now)
    assert everything(shell) == before


def test_what_is_no_event_is_refused() -> None:
    """By name, so that a bug of the keeper is found."""
    with pytest.raises(InternalError, match="no event"):
        at_rest().core.handle("TimerDue", 0.0)  # type: ignore[arg-type]


def test_every_event_has_a_rule() -> None:
    """An event that is new cannot be forgotten."""
    assert at_rest().core._rules.keys() == set(get_args(ev.Event))


@pytest.mark.parametrize("name", ["ä", "模型", "🦙", "a b"])
def test_names_of_any_script_are_names(name: str) -> None:
    """What can be sent is allowed."""
    shell = shell_of(100, [engine(name, 50)])
    shell.use(name)
