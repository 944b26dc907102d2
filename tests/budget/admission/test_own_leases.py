"""A request inside its caller's own stream: refused where it would wait for that stream, and only there."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from budget.admission.own_leases import check_own_leases
from budget.books.engines import EngineSpec, PlacementOption
from budget.errors import InvalidRequest
from budget.events import Want
from tests.budget.machine import Shell, engine, model, shell_of

TWO_PLACES = EngineSpec(
    "w", (PlacementOption((("gpu", 80),), 1.0), PlacementOption((("host", 80),), 9.0, 1)), 1
)


def shell(*engines: EngineSpec) -> Shell:
    """A GPU of 100 bytes and a host of 100."""
    return shell_of({"gpu": 100, "host": 100}, engines)


def refused(it: Shell, name: str, held: Iterable[str], want: Want = "lease") -> list[str]:
    """The models whose streams a request would wait for; empty where it may be made."""
    try:
        check_own_leases(it.core.state, name, want, list(held))
    except InvalidRequest as error:
        assert error.hint
        assert f"{name} is asked for inside a stream or client of" in error.message
        return list(map(str, error.facts["inside"]))  # type: ignore[arg-type]
    return []


def test_the_only_slot_cannot_be_waited_for_by_its_holder() -> None:
    """Whatever else is free; a load asks for no slot."""
    it = shell(engine("a", 40), engine("b", 40))
    held = it.serve("a")
    assert refused(it, "a", [held]) == ["a"]
    assert refused(it, "a", [held], want="load") == []
    assert refused(it, "b", [held]) == []


def test_slots_of_other_callers_come_free() -> None:
    """Of two slots the caller holds one: the other one, held by another caller, is waited for."""
    it = shell(engine("a", 40, slots=2))
    mine, other = it.serve("a"), it.serve("a")
    assert refused(it, "a", [mine]) == []
    assert refused(it, "a", [mine, other]) == ["a"]


def test_bytes_that_the_caller_itself_keeps_cannot_be_waited_for() -> None:
    """Two models that do not fit together; those that do, or that have another place, are waited for."""
    it = shell(engine("a", 60), engine("b", 60), engine("c", 40), TWO_PLACES)
    held = it.serve("a")
    assert refused(it, "b", [held]) == ["a"]
    assert refused(it, "b", [held], want="pin") == ["a"]
    assert refused(it, "c", [held]) == []
    assert refused(it, "w", [held]) == []
    other = it.serve("c")
    assert refused(it, "b", [held, other]) == ["a", "c"]
    assert refused(it, "b", [other]) == []


def test_leases_that_are_over_and_models_that_never_fit_are_told_otherwise() -> None:
    """The refusal is about the caller's own streams alone."""
    it = shell(engine("a", 60), engine("b", 60), engine("big", 500))
    held = it.serve("a")
    assert refused(it, "big", [held]) == []
    it.end(held)
    assert refused(it, "a", [held, "unknown"]) == []
    assert refused(it, "b", [held]) == []


def test_bytes_of_a_pinned_engine_are_counted_once() -> None:
    """They are kept by its pin already, beside which a smaller model fits."""
    it = shell_of(100, [engine("a", 60), engine("b", 40)], [model("a", pinned=True)])
    it.settle()
    assert refused(it, "b", [it.serve("a")]) == []


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_hint_names_more_slots_where_they_would_help(name: str) -> None:
    """Slots of a model; no key makes bytes."""
    it = shell(engine("a", 60), engine("b", 60))
    with pytest.raises(InvalidRequest) as caught:
        check_own_leases(it.core.state, name, "lease", [it.serve("a")])
    assert ("[models.a] more slots" in caught.value.hint) is (name == "a")
