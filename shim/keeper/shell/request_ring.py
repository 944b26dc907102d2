"""The requests of the last minutes, for `keepwarm trace capture`: `[keeper] trace = "ring"`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from typing import Any, Final

from budget.errors import InvalidRequest
from shim.config import KeeperSection
from shim.keeper.shell.history import History
from shim.keeper.shell.stories import DenialStory, RequestStory, Stories, Story

MOST_REQUESTS: Final = 20_000
"""A few megabytes, and less than a message may have."""


class RequestRing:
    """Bounded in number and in age.

    Args:
        stories: tells what ended.
        history: has the loads, the evictions and the books.
    """

    def __init__(self, stories: Stories, history: History) -> None:
        self._stories = stories
        self._history = history
        self._kept: deque[RequestStory | DenialStory] = deque(maxlen=MOST_REQUESTS)
        self._last_ns = 0
        self._since_ns: int | None = None

    def follow(self, section: KeeperSection) -> None:
        """Begin, end or change what is remembered, as the configuration says."""
        self._last_ns = int(section.trace_last * 1e9)
        if section.trace == "off":
            self._stories.leave(self._remember)
            self._kept.clear()
            self._since_ns = None
        elif self._since_ns is None:
            self._stories.listeners.append(self._remember)
            self._since_ns = time.monotonic_ns()

    def captured(self, last_s: float) -> dict[str, Any]:
        """What ended or was under way in the last seconds, JSON-serialisable.

        `since_ns` is where it begins: not before the ring did.

        Raises:
            InvalidRequest: the keeper keeps no ring.
        """
        if self._since_ns is None:
            raise InvalidRequest(
                "The keeper remembers no requests.",
                hint='Set `trace = "ring"` in [keeper], then `keepwarm config reload`.',
            )
        now_ns = time.monotonic_ns()
        since_ns = max(self._since_ns, now_ns - min(int(last_s * 1e9), self._last_ns))
        return {
            "since_ns": since_ns,
            "until_ns": now_ns,
            "requests": [asdict(story) for story in self._kept if story.end_ns >= since_ns],
            "history": self._history.between(since_ns, now_ns),
        }

    def _remember(self, story: Story) -> None:
        if isinstance(story, RequestStory | DenialStory):
            self._kept.append(story)
            oldest = story.end_ns - self._last_ns
            while self._kept and self._kept[0].end_ns < oldest:
                self._kept.popleft()
