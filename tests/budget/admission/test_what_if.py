"""Questions before anything is loaded: what would leave, and what fits together. Nothing changes."""

from __future__ import annotations

import pytest

from budget.admission.what_if import what_if
from budget.errors import UnknownModel
from budget.snapshot import snapshot
from tests.budget.machine import engine, model, shell_of


def test_what_would_leave_is_named_and_stays() -> None:
    """The answer is what admission would choose; asking is no use and evicts nothing."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50), engine("c", 60), engine("d", 40)])
    for name in ("a", "b"):
        shell.use(name)
    before = snapshot(shell.core, shell.now)
    found = what_if(shell.core.state, ["a", "c", "d"], shell.now)
    assert found.evicted["a"] == ()
    assert found.evicted["c"] == ("a", "b")
    assert found.evicted["d"] == ("a",)
    assert found.bytes["c"] == {"gpu": 60}
    assert found.limits == {"gpu": 100}
    assert snapshot(shell.core, shell.now) == before
    shell.use("d")
    assert shell.resident() == {"b", "d"}


def test_engines_in_use_and_pins_are_in_the_way_for_now() -> None:
    """None is the answer: nothing could be evicted at this moment."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    held = shell.serve("a")
    assert what_if(shell.core.state, ["b"], shell.now).evicted == {"b": None}
    shell.end(held)
    assert what_if(shell.core.state, ["b"], shell.now).evicted == {"b": ("a",)}


def test_models_fit_together_or_not_whatever_is_resident() -> None:
    """Pins of others count; two names of one engine count once."""
    engines = [engine("a", 50), engine("b", 50), engine("c", 60), engine("p", 10)]
    models = [model(name) for name in "abc"] + [model("a2", "a"), model("p", pinned=True)]
    shell = shell_of(110, engines, models)
    shell.settle()

    def fit(*names: str) -> bool:
        return what_if(shell.core.state, names, shell.now).together

    assert fit("a", "b")
    assert fit("a", "b", "a2")
    assert not fit("b", "c", "p")
    assert not fit("a", "c")
    assert fit("c", "p")
    with pytest.raises(UnknownModel):
        fit("a", "nothing")
