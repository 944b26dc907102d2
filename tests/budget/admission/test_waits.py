"""A grant and a denial say what the request had to wait for when it came: no reader has to guess it."""

from __future__ import annotations

from budget import actions as act
from budget.books.engines import EngineSpec, PlacementOption
from tests.budget.machine import Shell, engine, model, shell_of


def granted_for(shell: Shell, request: str) -> str:
    """What a granted request had waited for."""
    grants = [one for one in shell.log if isinstance(one, act.Grant)]
    return next(one.waited_for for one in grants if one.request_id == request)


def test_a_request_that_is_served_at_once_waited_for_nothing() -> None:
    """Neither the first of a resident engine, nor one beside it."""
    shell = shell_of(100, [engine("a", 80, slots=2)])
    shell.serve("a")
    assert granted_for(shell, shell.ask("a")) == ""


def test_a_slot_is_named_with_its_model() -> None:
    """As the request called it, where an engine has several names."""
    shell = shell_of(100, [engine("e", 80)], [model("a", "e"), model("b", "e")])
    first = shell.ask("a")
    shell.settle()
    behind = shell.ask("b")
    shell.end(first)
    assert granted_for(shell, behind) == "a slot of b"
    assert granted_for(shell, first) == "its load"


def test_bytes_are_named_with_their_device_and_the_models_that_hold_them() -> None:
    """Both devices of an engine that lies on two."""
    wide = EngineSpec("w", (PlacementOption((("gpu", 80), ("host", 80)), 1.0),), 1)
    shell = shell_of(
        {"gpu": 100, "host": 100},
        [engine("a", 80), engine("h", 80, device="host"), wide],
        [model("small", "a"), model("other", "h"), model("wide", "w")],
    )
    held = [shell.ask("small"), shell.ask("other")]
    shell.settle()
    waiting = shell.ask("wide")
    for one in held:
        shell.end(one)
    shell.settle()
    assert granted_for(shell, waiting) == (
        "bytes of gpu held by small and bytes of host held by other"
    )


def test_a_denial_says_it_too() -> None:
    """Among the facts of its error, which reach the client."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.ask("a")
    shell.settle()
    shell.ask("b", deadline=5.0)
    shell.advance(6.0)
    (denial,) = (one for one in shell.log if isinstance(one, act.Deny))
    assert denial.error["facts"]["waited_for"] == "bytes of gpu held by a"
