"""Judges whether an engine makes progress, by comparing its signs of life from look to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from backends.base import Signs, SlotSigns
from budget.errors import EngineDied, EngineTimeout, KeepwarmError

Condition = Literal[
    "fine", "computing", "unused", "spinning", "stuck", "silent", "stopped", "unreachable"
]

PATIENCE: Final = 10.0
"""How many times longer an engine that computes may take: a batch of 2,048 tokens of a prompt is one
step, and takes minutes on a slow processor."""
WORKING_SHARE: Final = 0.02
"""A share of the time on the CPU. The keeper's questions cost less than this; more is work."""
LONGEST_STEP_S: Final = 6.0
"""The most seconds that one look adds to a condition. If the keeper itself was stopped for an hour, its
engines did not have that hour."""

_SAID: Final[dict[Condition, str]] = {
    "computing": "it works on one step of a request, a batch of a prompt perhaps, and does not come to"
    " its end",
    "unused": "it works, and no request uses it",
    "spinning": "no slot works on a request, and its process computes all the same, as an endless chat"
    " template does",
    "stuck": "a slot works on a request and does not get on",
    "silent": "it does not answer on its socket",
    "stopped": "its process is stopped, by a signal or a debugger",
}


@dataclass(slots=True)
class StallDetector:
    """The looks at one run of an engine. Times are seconds of any monotonic clock.

    Attributes:
        condition: what the engine does now.
        since_s: for how long it has had this condition, as far as it was watched.
        ailing_s: for how long it has not been `fine`.
        idle_since: since when fewer slots work than leases are held, and nothing is wrong with it.
    """

    condition: Condition = "fine"
    since_s: float = 0.0
    ailing_s: float = 0.0
    idle_since: float | None = None
    _before: Signs | None = None
    _slots: SlotSigns | None = None
    """The last known state of its slots, perhaps some looks ago."""
    _looked_at: float = 0.0
    _cpu_s: float = 0.0
    _uses: frozenset[str] = frozenset()
    _own: frozenset[str] = frozenset()
    """The requests that used it when it was last `fine`, or at the first look after that."""

    def look(
        self,
        signs: Signs,
        *,
        leases: int,
        asked: bool,
        now: float,
        uses: frozenset[str] = frozenset(),
    ) -> None:
        """Record one look at the engine.

        Args:
            signs: its signs of life.
            leases: how many requests use it.
            asked: whether its slots were asked for, so that no answer counts as silence.
            now: the time of the look.
            uses: the ids of these requests, as far as they are known.
        """
        self._uses = uses
        if self.ailing_s == 0.0:
            self._own = uses
        before, passed_s = self._before, now - self._looked_at
        moved = signs.slots is not None and self._slots is not None
        moved = moved and signs.slots != self._slots
        seen = _condition(
            signs, _work(before, signs, passed_s), moved=moved, leases=leases, asked=asked
        )
        self._count(seen, min(passed_s, LONGEST_STEP_S) if before is not None else 0.0)
        self._cpu_s = _used(before, signs)
        busy = signs.slots.busy if signs.slots is not None else leases
        if busy >= leases or seen != "fine":
            self.idle_since = None
        elif self.idle_since is None or moved:
            self.idle_since = now
        self._before, self._slots = signs, signs.slots or self._slots
        self._looked_at = now

    def _count(self, seen: Condition, step_s: float) -> None:
        if seen == "fine":
            self.since_s = self.ailing_s = 0.0
        else:
            self.since_s = self.since_s + step_s if seen == self.condition else 0.0
            self.ailing_s += step_s
        self.condition = seen

    @property
    def is_left_over(self) -> bool:
        """Whether its step began before every request that uses it: the step's own caller is gone."""
        return bool(self._uses) and not self._uses & self._own

    def verdict(
        self, model: str, stall_s: float, log_tail: tuple[str, ...]
    ) -> KeepwarmError | None:
        """The error to end the engine with; None while it need not be ended.

        Args:
            model: the model's name, for the message.
            stall_s: how long an engine may make no progress.
            log_tail: the last lines of the engine's log.
        """
        if self.condition == "unreachable":
            return unreachable(model) if self.since_s > 0.0 else None
        # No request has to be patient with the step of another one.
        patient_s = stall_s * (1.0 if self.is_left_over else PATIENCE)
        limit_s = patient_s if self.condition in ("computing", "unused") else stall_s
        if self.condition == "fine" or (self.since_s < limit_s and self.ailing_s < patient_s):
            return None
        return EngineTimeout(
            f"{model} made no progress for {self.ailing_s:.0f} s: {_SAID[self.condition]}.",
            hint="It is ended, and the next request starts it again. If its work takes so long, raise"
            " [keeper] stall_timeout.",
            model=model,
            seen=self.condition,
            left_over=self.is_left_over,
            seconds=round(self.ailing_s, 1),
            cpu_s=round(self._cpu_s, 2),
            log_tail=list(log_tail),
        )


def unreachable(model: str) -> EngineDied:
    """The error of an engine that no request reaches any more. Its log does not show that."""
    return EngineDied(
        f"{model} cannot be reached: its socket is gone, or another program's.",
        hint="It is ended, and the next request starts it again. Something deletes files in the runtime"
        " folder; set KEEPWARM_RUNTIME_DIR to one that is left alone.",
        model=model,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """Whether a process has used the CPU, and has read from disks, since the look before."""

    computes: bool = False
    reads: bool = False


def _condition(now: Signs, work: _Work, *, moved: bool, leases: int, asked: bool) -> Condition:
    slots = now.slots
    if not now.reachable:
        return "unreachable"
    if now.stopped:
        return "stopped"
    if slots is None and now.well:
        return "fine"
    if slots is None:
        return _unasked(work) if not asked else _unanswered(now, work)
    if moved:
        return "fine" if leases else "unused"
    if not slots.busy:
        return "spinning" if work.computes else "fine"
    if not leases:
        return "unused"
    if now.elsewhere or work.reads or (slots.prompting and work.computes):
        return "computing"
    return "stuck"


def _unasked(work: _Work) -> Condition:
    return "spinning" if work.computes else "fine"


def _unanswered(now: Signs, work: _Work) -> Condition:
    """The condition when the slots were asked for and not reported: some builds still report health."""
    return "computing" if now.answers and (work.computes or now.elsewhere) else "silent"


def _work(before: Signs | None, now: Signs, passed_s: float) -> _Work:
    if before is None:
        return _Work()
    computes = _used(before, now) > WORKING_SHARE * passed_s
    return _Work(computes, now.disk_bytes > before.disk_bytes)


def _used(before: Signs | None, now: Signs) -> float:
    """CPU seconds between two looks; 0 where they are not known."""
    if before is None or before.cpu_s is None or now.cpu_s is None:
        return 0.0
    return now.cpu_s - before.cpu_s
