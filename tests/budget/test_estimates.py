"""Figures that are corrected while engines live: they count from the next load on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from budget import events as ev
from budget.books.engines import EngineSpec, PlacementOption
from budget.errors import InternalError
from tests.budget.machine import Shell, engine, model, shell_of


def estimate(shell: Shell, engine_id: str, amount: int) -> None:
    """From now on the engine is thought to take so many bytes of `gpu`."""
    (option,) = shell.core.state.residents[engine_id].spec.options
    corrected = replace(option, bookings=tuple((device, amount) for device, _ in option.bookings))
    shell.send(ev.EngineEstimated(engine_id, (corrected,)))


def test_a_resident_engine_is_left_and_its_next_load_is_booked_anew() -> None:
    """Nothing is evicted for it; the next load asks for what was learned."""
    shell = shell_of(100, [engine("a", 30), engine("b", 60)])
    shell.use("a")
    estimate(shell, "a", 50)
    assert shell.core.ledgers()[0].reserved_bytes == 30
    shell.send(ev.HintGiven("unload", "a"))
    shell.settle()
    shell.use("b")
    shell.use("a")
    assert shell.core.ledgers()[0].reserved_bytes == 50


def test_who_waits_for_what_never_fits_any_more_is_told_so() -> None:
    """A correction can show that a model does not fit at all."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    lease = shell.serve("a")
    request = shell.ask("b")
    estimate(shell, "b", 120)
    shell.end(lease)
    assert shell.outcomes[request] == "NeverFits"
    assert not shell.loading


def test_a_claim_in_the_bytes_of_before_is_made_anew() -> None:
    """What was promised was too little; the load begins when what it really takes is free."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40), engine("c", 20)])
    first, second = shell.serve("a"), shell.serve("b")
    request = shell.ask("c")
    shell.settle()
    assert shell.outcomes[request] == "granted"
    shell.end(request)
    shell.send(ev.HintGiven("unload", "c"))
    shell.settle()
    estimate(shell, "c", 60)
    again = shell.ask("c")
    assert again in shell.waiting
    shell.end(first)
    shell.end(second)
    shell.settle()
    assert shell.outcomes[again] == "granted"


def test_a_reload_brings_corrected_bytes_for_engines_that_stay() -> None:
    """The same engine with other bytes is the same engine."""
    shell = shell_of(100, [engine("a", 30)])
    shell.use("a")
    corrected = EngineSpec("a", (PlacementOption((("gpu", 45),), 1.0),))
    shell.send(ev.Reconfigured((model("a"),), (corrected,), {"gpu": 100}))
    assert shell.core.ledgers()[0].reserved_bytes == 30
    shell.send(ev.HintGiven("unload", "a"))
    shell.settle()
    shell.use("a")
    assert shell.core.ledgers()[0].reserved_bytes == 45


def test_impossible_estimates_are_bugs() -> None:
    """An unknown engine, another number of placements, a device that is not there."""
    shell = shell_of(100, [engine("a", 30)])
    option = PlacementOption((("gpu", 1),), 1.0)
    for engine_id, options in (
        ("x", (option,)),
        ("a", (option, option)),
        ("a", (PlacementOption((("moon", 1),), 1.0),)),
        ("a", (PlacementOption((("gpu", -1),), 1.0),)),
    ):
        with pytest.raises(InternalError):
            shell.send(ev.EngineEstimated(engine_id, options))


def test_out_of_memory_may_ask_for_the_same_of_what_was_not_refused() -> None:
    """A connection that both placements need is no reason against the smaller one."""
    sizes = (80, 40)
    options = tuple(
        PlacementOption((("gpu", size), ("seat", 1)), 1.0, tier) for tier, size in enumerate(sizes)
    )
    shell = shell_of({"gpu": 100, "seat": 1}, [EngineSpec("a", options)])
    shell.ask("a")
    shell.fail_load("a", out_of_memory=True)
    assert shell.loading["a"].option_index == 1
