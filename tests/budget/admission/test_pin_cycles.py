"""Clients that wait for the ends of each other's pins: the request that closes the circle is denied."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from budget import events as ev
from budget.actions import Deny
from budget.admission import scheduler
from budget.books.engines import EngineSpec, PlacementOption
from tests.budget.machine import Shell, engine, shell_of

WAIT_S = 4.0


def two_pins() -> Shell:
    """Two clients, each with a pin on 30 of 100 bytes; `x` and `y` fit beside one of them only."""
    sizes = {"a": 30, "b": 30, "c": 5, "x": 60, "y": 70, "z": 75}
    shell = shell_of(100, [engine(*item) for item in sizes.items()], max_wait_s=WAIT_S)
    shell.serve_pin("a", "one")
    shell.serve_pin("b", "two")
    return shell


@pytest.mark.parametrize("want", ["lease", "load", "pin"])
def test_the_request_that_closes_a_circle_of_pins_is_denied_and_the_other_is_served(
    want: str,
) -> None:
    """At once, with both pins, their clients and the numbers."""
    shell = two_pins()
    first = shell.ask("x", "one", want=want)
    assert first in shell.waiting
    error = shell.error(shell.ask("y", "two", want=want))
    assert error["error"] == "AdmissionDenied"
    for words in ("the pin of a (client one)", "the pin of b (client two)", "70 B on gpu"):
        assert words in error["message"]
    facts = error["facts"]
    assert [(p["model"], p["clients"]) for p in facts["pins"]] == [("a", ["one"]), ("b", ["two"])]
    assert [(w["client"], w["model"]) for w in facts["waits"]] == [("two", "y"), ("one", "x")]
    numbers = (facts["limit_bytes"], facts["reserved_bytes"], facts["requested_bytes"])
    assert numbers == (100, 60, 70)
    assert first in shell.waiting
    shell.gone("two")
    shell.settle()
    assert shell.outcomes[first] == "granted"


@pytest.mark.parametrize("later", ["one", "two"])
def test_a_request_with_a_deadline_closes_no_circle(later: str) -> None:
    """Its client's pins end at the latest some time after that."""
    shell = two_pins()
    deadlines = {"one": None, "two": None, later: 60.0}
    waiting = {
        shell.ask("x", "one", deadline=deadlines["one"]),
        shell.ask("y", "two", deadline=deadlines["two"]),
    }
    assert shell.waiting == waiting


def test_a_request_that_waits_for_a_circle_and_is_no_part_of_it_waits_on() -> None:
    """Also where it came later than all of them; a pin that arrives last closes the circle."""
    shell = two_pins()
    outside = shell.ask("z", "three")
    first = shell.ask("x", "one")
    behind = shell.ask("z", "four")
    closing = shell.ask("y", "two")
    assert shell.outcomes[closing] == "AdmissionDenied"
    assert shell.waiting == {outside, first, behind}


def test_a_circle_over_the_connections_of_programs_is_ended_once_all_have_waited() -> None:
    """As a program's wait for its own pin is: another of its threads may end the pin meanwhile."""
    shell = shell_of(100, [engine("a", 30), engine("b", 30), engine("x", 60)], max_wait_s=WAIT_S)
    for name, program in (("a", "11"), ("b", "22")):
        shell.ask(name, f"pins of {program}", want="pin", owner=program)
        shell.settle()
    first = shell.ask("x", "calls of 11", owner="11")
    shell.advance(1.0)
    shell.ask("x", "stranger", owner="33")
    later = shell.ask("x", "calls of 22", owner="22")
    shell.advance(WAIT_S - 0.5)
    assert {first, later} < shell.waiting
    shell.advance(0.5)
    assert shell.outcomes[later] == "AdmissionDenied"
    assert first in shell.waiting


Step = tuple[str, str, str]
SIZES = {"a": 20, "b": 30, "c": 30, "d": 30, "e": 60, "f": 70, "g": 65}
PLACES = {"c": ("gpu", "host"), "d": ("host",), "e": ("gpu", "host"), "g": ("host",)}
CLIENTS = {"one": None, "two": None, "three": "11", "four": "11", "five": "22"}
KINDS = ("pin", "lease", "lease", "lease", "load", "late", "unpin", "gone", "wait")


def steps_of(seed: int) -> list[Step]:
    """A few pins of small models, then requests of all kinds, mostly for large ones."""
    draw = random.Random(seed)
    clients = sorted(CLIENTS)
    pins = [("pin", draw.choice("abcd"), draw.choice(clients)) for _ in range(draw.randint(2, 4))]
    then = [
        (draw.choice(KINDS), draw.choice("abcdefgefg"), draw.choice(clients)) for _ in range(20)
    ]
    return pins + then


def take(shell: Shell, step: Step) -> None:
    """One step; all loads, unloads and leases that it brings end."""
    kind, name, client = step
    if kind == "unpin":
        shell.send(ev.HintGiven("unpin", name))
    elif kind == "gone":
        shell.gone(client)
    elif kind == "wait":
        shell.advance(WAIT_S)
    else:
        want = "lease" if kind == "late" else kind
        deadline = shell.now + 1.5 * WAIT_S if kind == "late" else None
        shell.ask(name, client, want=want, deadline=deadline, owner=CLIENTS[client])
    rest(shell)


def rest(shell: Shell) -> None:
    """Everything under way ends."""
    shell.settle()
    while shell.leases:
        shell.end(next(iter(shell.leases)))
        shell.settle()


def free(shell: Shell) -> list[str]:
    """The clients that wait for nothing, and are no connection of a program that has waited long."""
    waiting = [r for r in shell.core.state.queue if r.deadline is None]
    old = {r.owner for r in waiting if r.aged(shell.now, WAIT_S)} - {None}
    return sorted(
        CLIENTS.keys() - {r.client_id for r in waiting} - {c for c in CLIENTS if CLIENTS[c] in old}
    )


def end_the_free(shell: Shell) -> None:
    """Every client that waits for nothing ends, until that changes nothing any more."""
    while True:
        before = set(shell.waiting)
        for client in free(shell):
            shell.gone(client)
            rest(shell)
        if shell.waiting == before:
            return


def small_world() -> Shell:
    """Two devices; some engines go to one of them, some to the other, some to either."""
    engines = [
        EngineSpec(
            name,
            tuple(PlacementOption(((device, size),), 1.0) for device in PLACES.get(name, ("gpu",))),
        )
        for name, size in SIZES.items()
    ]
    return shell_of({"gpu": 100, "host": 80}, engines, max_wait_s=WAIT_S)


def test_no_request_waits_for_a_circle_and_none_is_denied_without_one() -> None:
    """Clients that wait for nothing end, one after another: all waiting requests are served then.

    Where a circle was said to be closed, all of that is played again without looking for circles:
    the request that was denied is then never served.
    """
    lengths = Counter(length for seed in range(300) for length in circles_of(seed))
    assert lengths[1] >= 10
    assert lengths[2] >= 10


def circles_of(seed: int) -> list[int]:
    """The lengths of the circles that a request closed; the first ends the steps."""
    shell, steps = small_world(), steps_of(seed)
    lengths: list[int] = []
    for number, step in enumerate(steps):
        before = len(shell.log)
        take(shell, step)
        for action in shell.log[before:]:
            if isinstance(action, Deny) and "waits" in action.error["facts"] and not lengths:
                lengths.append(len(action.error["facts"]["waits"]))
                assert_never_served(steps[: number + 1], action.request_id)
        if lengths:
            break
    shell.advance(WAIT_S)
    end_the_free(shell)
    shell.advance(2 * WAIT_S)
    assert not shell.waiting, seed
    return lengths


def assert_never_served(steps: Sequence[Step], request_id: str) -> None:
    """However many clients end that wait for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "end_cycles", lambda state, now: None)
        shell = small_world()
        for step in steps:
            take(shell, step)
        end_the_free(shell)
    assert request_id in shell.waiting
