"""Which of a model's endpoints gets the next request, and when a model is unstable. Pure.

Times are seconds of a monotonic clock, and random numbers are between 0 and 1; both are arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
DEATHS: Final = 3
DEATHS_WITHIN_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class WeightedEndpoint:
    """An endpoint: its share of the requests beside the others, and how many it gets at once."""

    url: str
    weight: float = 1.0
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """The endpoint that was chosen, by its place; `check`: it failed before, so that it is probed first."""

    place: int
    check: bool = False


@dataclass(slots=True)
class _State:
    running: int = 0
    failures: int = 0
    until_s: float = 0.0
    checking: bool = False


class EndpointChoice:
    """Chooses among endpoints by their weights.

    One that fails cools down: a second after the first failure, twice as long after each further one, a
    minute at most, and up to a quarter more or less by chance, so that clients do not come back together.
    Then one request at a time may check it, until one succeeds.

    Args:
        targets: the endpoints.
    """

    def __init__(self, targets: Sequence[WeightedEndpoint]) -> None:
        self.targets = tuple(targets)
        self._states = [_State() for _ in self.targets]

    def pick(self, now_s: float, draw: float, passed: Collection[int] = ()) -> Pick | None:
        """The endpoint of a request; None where none can take it.

        Args:
            now_s: the time.
            draw: a random number, which decides by weight.
            passed: places that this request has tried.
        """
        free = [place for place in range(len(self.targets)) if place not in passed]
        free = [place for place in free if self._has_room(place)]
        ready = [
            p for p in free if self._states[p].until_s <= now_s and not self._states[p].checking
        ]
        if not ready:
            # All of them cool down or are checked: the one that began first may still answer.
            ready = sorted(free, key=lambda place: self._states[place].until_s)[:1]
        if not ready:
            return None
        chosen = self._drawn(ready, draw)
        return Pick(chosen, check=self._states[chosen].failures > 0)

    def _has_room(self, place: int) -> bool:
        most = self.targets[place].concurrency
        return most is None or self._states[place].running < most

    def _drawn(self, places: Sequence[int], draw: float) -> int:
        left = draw * sum(self.targets[place].weight for place in places)
        for place in places:
            left -= self.targets[place].weight
            if left < 0:
                return place
        return places[-1]

    def full(self, passed: Collection[int] = ()) -> bool:
        """Whether an endpoint that was not tried yet has all the requests that it may have."""
        return any(not self._has_room(p) for p in range(len(self.targets)) if p not in passed)

    def begun(self, pick: Pick) -> None:
        """A request goes there."""
        state = self._states[pick.place]
        state.running += 1
        state.checking = pick.check

    def ended(self, place: int) -> None:
        """A request that had begun there is over, whatever its outcome."""
        state = self._states[place]
        state.running -= 1
        state.checking = False

    def succeeded(self, place: int) -> None:
        """It answered: what it failed before is forgotten."""
        state = self._states[place]
        state.failures, state.until_s = 0, 0.0

    def failed(self, place: int, now_s: float, draw: float) -> None:
        """It failed: it cools down. Failures of requests that had begun before it did so count once."""
        state = self._states[place]
        if state.until_s > now_s:
            return
        state.failures += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(state.failures - 1, 16))
        state.until_s = now_s + pause_s * (0.75 + draw / 2)


class Stability:
    """Whether a model's engine dies too often to be asked: three deaths in ten minutes."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=DEATHS)

    def died(self, now_s: float) -> None:
        """Its engine ended under a request."""
        self._deaths.append(now_s)

    def unstable(self, now_s: float) -> bool:
        """Whether all of the last deaths were lately."""
        return len(self._deaths) == DEATHS and now_s - self._deaths[0] <= DEATHS_WITHIN_S
