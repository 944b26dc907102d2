"""keep_alive is a time-out: not a rank, and not a pin."""

from __future__ import annotations

import pytest

from budget import events as ev
from budget.books.states import State
from budget.errors import AdmissionDenied
from tests.budget.machine import engine, model, shell_of


def test_zero_leaves_after_the_request() -> None:
    """0: gone as soon as no request holds or wants it."""
    shell = shell_of(100, [engine("a", 50)], [model("a", keep_alive_s=0.0)])
    lease = shell.serve("a")
    waits = shell.ask("a")
    shell.end(lease)
    assert shell.outcomes[waits] == "granted", "requests that wait are served first"
    shell.end(waits)
    assert shell.state("a") is State.EVICTING


def test_seconds_run_from_the_last_use() -> None:
    """A use in between starts them anew."""
    shell = shell_of(100, [engine("a", 50)], [model("a", keep_alive_s=5.0)])
    shell.use("a")
    shell.advance(4.0)
    shell.use("a")
    shell.advance(4.9)
    assert shell.state("a") is State.IDLE
    shell.advance(0.2)
    assert shell.state("a") is State.EVICTING


def test_minus_one_has_no_time_out_and_is_no_pin() -> None:
    """-1 stays for ever while no request needs the bytes, and leaves when one does."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.use("a")
    shell.advance(1e6)
    assert shell.state("a") is State.IDLE
    shell.use("b")
    assert shell.resident() == {"b"}


def test_a_long_keep_alive_does_not_outrank_recency() -> None:
    """It is no rank: the least recently used leaves, whatever its time-out."""
    shell = shell_of(
        100,
        [engine("old", 50), engine("new", 50), engine("next", 50)],
        [model("old", keep_alive_s=1e6), model("new", keep_alive_s=10.0)],
    )
    shell.use("old")
    shell.advance(1.0)
    shell.use("new")
    shell.use("next")
    assert shell.resident() == {"new", "next"}


def test_what_was_loaded_ahead_and_not_used_yet_is_not_idle() -> None:
    """Its seconds begin with its first use."""
    shell = shell_of(100, [engine("a", 50)], [model("a", keep_alive_s=5.0)])
    shell.ask("a", want="load")
    shell.settle()
    shell.advance(100.0)
    assert shell.state("a") is State.IDLE
    shell.use("a")
    shell.advance(5.0)
    assert shell.state("a") is State.EVICTING


def test_a_load_whose_request_was_withdrawn_keeps_its_time_out() -> None:
    """It was not loaded ahead on purpose, so it does not stay for ever."""
    shell = shell_of(100, [engine("a", 50)], [model("a", keep_alive_s=5.0)])
    shell.send(ev.RequestCancelled(shell.ask("a")))
    shell.finish_load("a")
    shell.advance(4.9)
    assert shell.state("a") is State.IDLE
    shell.advance(0.2)
    assert shell.state("a") is State.EVICTING


def test_a_shared_engine_keeps_the_longest_keep_alive() -> None:
    """Two names on one engine: the longer time-out counts, and -1 is the longest."""
    names = [model("short", "a", keep_alive_s=1.0), model("long", "a", keep_alive_s=5.0)]
    shell = shell_of(100, [engine("a", 50)], names)
    shell.use("short")
    shell.advance(4.9)
    assert shell.state("a") is State.IDLE
    shell.advance(0.2)
    assert shell.state("a") is State.EVICTING
    names.append(model("forever", "a", keep_alive_s=-1.0))
    forever = shell_of(100, [engine("a", 50)], names)
    forever.use("short")
    forever.advance(1e6)
    assert forever.state("a") is State.IDLE


def test_keep_alive_is_silent_while_pinned_and_begins_to_count_when_unpinned() -> None:
    """A pin stays through any time-out; unpinned, an engine idle for longer leaves at once."""
    shell = shell_of(100, [engine("a", 50)], [model("a", keep_alive_s=5.0, pinned=True)])
    shell.settle()
    shell.use("a")
    shell.advance(100.0)
    assert shell.state("a") is State.IDLE
    shell.send(ev.HintGiven("unpin", "a"))
    assert shell.state("a") is State.EVICTING


def test_an_unload_hint_lets_running_leases_end_first() -> None:
    """It leaves when idle; a request that comes meanwhile waits for its next load."""
    shell = shell_of(100, [engine("a", 50, slots=2)])
    lease = shell.serve("a")
    shell.send(ev.HintGiven("unload", "a"))
    assert shell.state("a") is State.LEASED
    later = shell.ask("a")
    assert later in shell.waiting
    shell.end(lease)
    assert shell.state("a") is State.EVICTING
    shell.settle()
    assert shell.outcomes[later] == "granted"
    assert shell.leases[later].cold


def test_an_unload_hint_abandons_a_load_that_no_request_waits_for() -> None:
    """It is not forgotten because the engine was not there yet."""
    shell = shell_of(100, [engine("a", 50)])
    shell.send(ev.RequestCancelled(shell.ask("a")))
    shell.send(ev.HintGiven("unload", "a"))
    assert shell.unloading["a"].abandon


def test_a_release_hint_makes_the_next_victim_and_nothing_more() -> None:
    """A released engine stays while the bytes are not needed, and then leaves first."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50), engine("c", 50)])
    shell.use("a")
    shell.advance(1.0)
    shell.use("b")
    shell.send(ev.HintGiven("release", "b"))
    assert shell.resident() == {"a", "b"}
    shell.use("c")
    assert shell.resident() == {"a", "c"}


def test_a_release_hint_ends_with_the_residency_it_was_given_for() -> None:
    """Said of an absent model it means nothing for the next load."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50), engine("c", 50)])
    shell.send(ev.HintGiven("release", "a"))
    shell.use("b")
    shell.advance(1.0)
    shell.ask("a", want="load")
    shell.settle()
    shell.use("c")
    assert shell.resident() == {"a", "c"}


def test_an_unload_hint_for_a_load_that_others_wait_for_is_refused() -> None:
    """It is neither forgotten nor allowed to make them pay for a second load."""
    shell = shell_of(100, [engine("a", 50)])
    shell.ask("a")
    with pytest.raises(AdmissionDenied, match="loading for 1 waiting"):
        shell.send(ev.HintGiven("unload", "a"))
    shell.settle()
    assert shell.state("a") is State.LEASED
