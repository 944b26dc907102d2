"""Whether an engine gets on with its work, from what was seen of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.base import Signs, SlotSigns
from budget.errors import EngineDied, EngineTimeout
from shim.keeper.engines.deaths import Deaths
from shim.keeper.engines.stall_detection import LONGEST_STEP_S, PATIENCE, StallDetector

STALL_S = 30.0
EVERY_S = 2.0
IDLE = SlotSigns(0)
PROMPT = SlotSigns(1, prompting=True, moved=((7, 2048, 0, 0),))
ANSWER = SlotSigns(1, moved=((7, 900, 900, 12),))


class Watched:
    """One engine, looked at every two seconds."""

    def __init__(self, *, leases: int = 1) -> None:
        self.detector = StallDetector()
        self.leases = leases
        self.now = 100.0
        self.cpu_s = 5.0
        self.ask = True
        self.uses = frozenset[str]()

    def look(self, signs: Signs, *, cpu_share: float = 0.0, after_s: float = EVERY_S) -> None:
        """One look, after the process used a share of the time."""
        self.now += after_s
        self.cpu_s += cpu_share * after_s
        seen = replace(signs, cpu_s=self.cpu_s)
        self.detector.look(seen, leases=self.leases, asked=self.ask, now=self.now, uses=self.uses)

    def lasts(self, signs: Signs, seconds: float, *, cpu_share: float = 0.0) -> bool:
        """Whether an engine that goes on like this is left alone for so long."""
        until = self.now + seconds
        while self.now < until:
            self.look(signs, cpu_share=cpu_share)
            if self.verdict() is not None:
                return False
        return True

    def idle(self) -> float | None:
        """Since when it waits for its client."""
        return self.detector.idle_since

    def verdict(self) -> Exception | None:
        """Why it has to be ended now."""
        return self.detector.verdict("m", STALL_S, ("last line",))


def test_the_step_of_a_request_that_is_gone_gets_no_patience_from_the_next() -> None:
    """It began before every request that is there, and the error says so; an own step has its time."""
    watched = Watched()
    watched.uses = frozenset({"r1"})
    watched.look(Signs(slots=SlotSigns(1, moved=((1, 1, 1, 1),))))
    assert watched.lasts(Signs(slots=PROMPT), STALL_S + 4, cpu_share=1.0)
    assert watched.detector.condition == "computing"
    watched.uses = frozenset({"r1", "r2"})
    assert watched.lasts(Signs(slots=PROMPT), 4, cpu_share=1.0)
    watched.uses = frozenset({"r2"})
    assert not watched.lasts(Signs(slots=PROMPT), 4, cpu_share=1.0)
    error = watched.verdict()
    assert isinstance(error, EngineTimeout)
    assert error.facts["left_over"] is True
    deaths = Deaths()
    deaths.note("e/1", error, ("r2",))
    told = deaths.error_for("e/1", "r2")
    assert told is not None
    assert told["facts"]["suspected"] is False


@pytest.mark.parametrize(
    ("seen", "signs", "cpu_share"),
    [
        ("stopped", Signs(stopped=True), 0.0),
        ("stopped", Signs(stopped=True, slots=IDLE), 0.0),
        ("silent", Signs(answers=False), 0.0),
        ("silent", Signs(answers=False), 1.0),
        ("silent", Signs(answers=True), 0.0),
        ("spinning", Signs(slots=IDLE), 1.0),
        ("stuck", Signs(slots=ANSWER), 0.0),
        ("stuck", Signs(slots=ANSWER), 1.0),
        ("stuck", Signs(slots=PROMPT), 0.0),
    ],
)
def test_an_engine_that_gets_no_further_is_ended_after_the_stall_timeout(
    seen: str, signs: Signs, cpu_share: float
) -> None:
    """And not before; the error says what was seen, for how long."""
    watched = Watched()
    watched.look(Signs(slots=SlotSigns(1, moved=((1, 1, 1, 1),))))
    assert watched.lasts(signs, STALL_S, cpu_share=cpu_share)
    assert not watched.lasts(signs, 2 * EVERY_S, cpu_share=cpu_share)
    error = watched.verdict()
    assert isinstance(error, EngineTimeout)
    assert error.facts["seen"] == seen
    assert error.facts["log_tail"] == ["last line"]
    assert "made no progress" in error.message


@pytest.mark.parametrize(
    ("signs", "cpu_share"),
    [
        (Signs(slots=PROMPT), 1.0),
        (Signs(slots=PROMPT), 0.05),
        (Signs(slots=PROMPT, elsewhere=True), 0.0),
        (Signs(slots=ANSWER, elsewhere=True), 0.0),
        (Signs(answers=True), 1.0),
    ],
)
def test_a_batch_of_a_prompt_may_take_ten_times_as_long(signs: Signs, cpu_share: float) -> None:
    """It is one step on a slow processor; also where another process computes, or none can be asked."""
    watched = Watched()
    assert watched.lasts(signs, PATIENCE * STALL_S, cpu_share=cpu_share)
    assert not watched.lasts(signs, 4 * EVERY_S, cpu_share=cpu_share)


@pytest.mark.parametrize("slots", [PROMPT, ANSWER])
def test_a_step_that_waits_for_the_disk_is_work(slots: SlotSigns) -> None:
    """Mapped weights that do not fit in memory are read again for each batch, and for each token."""
    watched = Watched()
    for read in range(100):
        watched.look(Signs(slots=slots, disk_bytes=read << 20))
    assert watched.detector.condition == "computing"
    assert watched.verdict() is None


@pytest.mark.parametrize("slots", [PROMPT, ANSWER])
def test_every_step_is_progress(slots: SlotSigns) -> None:
    """A slot that gets on once within the time-out is never ended, however slow it is."""
    watched = Watched()
    for step in range(20):
        moved = replace(slots, moved=((7, step, step, step),))
        assert watched.lasts(Signs(slots=moved), STALL_S - 2 * EVERY_S)


def test_a_client_that_sends_nothing_is_no_stall_of_the_engine() -> None:
    """The engine is idle, and says since when; what it was busy with before does not count."""
    watched = Watched()
    watched.look(Signs(slots=ANSWER), cpu_share=1.0)
    assert watched.idle() is None
    watched.look(Signs(slots=IDLE), cpu_share=0.0)
    since = watched.now
    assert watched.lasts(Signs(slots=IDLE), 100 * STALL_S)
    assert watched.idle() == since


def test_one_idle_client_of_several_is_seen() -> None:
    """Fewer slots work than leases are held."""
    watched = Watched(leases=2)
    watched.look(Signs(slots=replace(ANSWER, busy=2)))
    assert watched.idle() is None
    moving = (replace(ANSWER, moved=((7, 1, 1, n),)) for n in range(3))
    for slots in moving:
        watched.look(Signs(slots=slots), cpu_share=1.0)
    assert watched.idle() == watched.now, "it moved until now"
    watched.leases = 1
    watched.look(Signs(slots=ANSWER), cpu_share=1.0)
    assert watched.idle() is None


def test_an_engine_at_fault_does_not_blame_its_client() -> None:
    """Its slots are idle because a template does not end."""
    watched = Watched()
    watched.look(Signs(slots=IDLE))
    assert watched.idle() is not None
    watched.look(Signs(slots=IDLE), cpu_share=1.0)
    assert watched.idle() is None


def test_what_questions_cost_is_no_work() -> None:
    """An idle engine uses a thousandth of the time to answer them."""
    watched = Watched()
    assert watched.lasts(Signs(slots=IDLE), 100 * STALL_S, cpu_share=0.005)


def test_an_engine_that_nobody_uses_may_not_work_for_ever() -> None:
    """A caller that went in mid-prompt leaves at most a batch behind; spinning ends earlier."""
    unused = Watched(leases=0)
    for step in range(int(PATIENCE * STALL_S / EVERY_S)):
        unused.look(Signs(slots=replace(ANSWER, moved=((7, 1, 1, step),))), cpu_share=1.0)
        assert unused.verdict() is None
    assert not unused.lasts(Signs(slots=ANSWER), 4 * EVERY_S, cpu_share=1.0)
    spinning = Watched(leases=0)
    spinning.ask = False
    spinning.look(Signs(), cpu_share=0.0)
    spinning.look(Signs(), cpu_share=1.0)
    assert spinning.detector.condition == "spinning"
    spinning.ask = True
    assert spinning.lasts(Signs(slots=IDLE), STALL_S - EVERY_S, cpu_share=1.0)
    assert not spinning.lasts(Signs(slots=IDLE), 2 * EVERY_S, cpu_share=1.0)


def test_an_idle_engine_that_was_asked_nothing_is_fine() -> None:
    """Without a question there is no silence."""
    watched = Watched(leases=0)
    watched.ask = False
    assert watched.lasts(Signs(), 100 * STALL_S)


def test_changing_ailments_add_up() -> None:
    """One look that sees something else does not begin the patience anew."""
    watched = Watched()
    while watched.verdict() is None and watched.now < 100.0 + 20 * STALL_S:
        watched.look(Signs(slots=PROMPT), cpu_share=1.0)
        watched.look(Signs(answers=False))
    assert watched.now == pytest.approx(100.0 + PATIENCE * STALL_S, abs=3 * EVERY_S)


def test_one_slow_look_does_not_end_what_computes() -> None:
    """Minutes into a batch the process may get no CPU time for a moment."""
    watched = Watched()
    assert watched.lasts(Signs(slots=PROMPT), 5 * STALL_S, cpu_share=1.0)
    watched.look(Signs(slots=PROMPT), cpu_share=0.0)
    assert watched.verdict() is None


def test_time_in_which_the_keeper_did_not_look_is_not_held_against_the_engine() -> None:
    """Both were stopped, or the machine slept."""
    watched = Watched()
    watched.look(Signs(slots=ANSWER))
    watched.look(Signs(slots=ANSWER), after_s=3600.0)
    assert watched.verdict() is None
    assert watched.detector.ailing_s == LONGEST_STEP_S


def test_a_socket_that_is_gone_is_reported_at_the_second_look() -> None:
    """No request can get to the engine any more, whatever else it does."""
    watched = Watched(leases=0)
    watched.look(Signs())
    watched.look(Signs(reachable=False))
    assert watched.verdict() is None
    watched.look(Signs(reachable=False))
    error = watched.verdict()
    assert isinstance(error, EngineDied)
    assert "KEEPWARM_RUNTIME_DIR" in error.hint
