"""One request, as a trace tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RequestTimes:
    """One request. Times are None where the trace does not say them."""

    id: str
    model: str = ""
    asked: float | None = None
    granted: float | None = None
    prompt: tuple[float, float] | None = None
    generate: tuple[float, float] | None = None
    end: float | None = None
    cold: bool = False
    waited_for: str | None = None
    """The load that it waited for."""
    queued_for: str = ""
    """What it waited for in the queue, in words."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int | None = None
    predicted_s: float | None = None
    error: str | None = None

    @property
    def waits(self) -> tuple[float, float] | None:
        """From asking to the lease, or to the end of a request that got none."""
        if self.asked is None or self.granted is None:
            return None
        return self.asked, self.granted

    @property
    def waited_s(self) -> float:
        """From asking to the lease."""
        asked, granted = self.waits or (0.0, 0.0)
        return max(0.0, granted - asked)

    @property
    def first_token_s(self) -> float | None:
        """From asking to the first token."""
        if self.asked is None or self.generate is None:
            return None
        return self.generate[0] - self.asked
