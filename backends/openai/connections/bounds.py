"""The limits of one answer: seconds by phase and in all, bytes, pieces. All constants are here.

A hostile or broken server can send for ever: bytes without end, comments, empty deltas, `100 Continue`,
one byte a minute. So the bounds are not those of single reads. Every byte from the network and every second
of waiting is counted against one request (`Bounds`), and only tokens are progress.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from backends.base import Endpoint
from budget.errors import DeadlineExceeded, EndpointError, EngineTimeout, KeepwarmError

_MIB: Final = 1 << 20

HEAD_BYTES: Final = 256 << 10
"""Headers of an answer, with all `1xx` answers before it."""
CHAT_BYTES: Final = 32 * _MIB
"""A whole chat answer: ten times what 128k tokens with their text take."""
EMBED_BYTES: Final = 16 * _MIB
EMBED_BYTES_PER_TEXT: Final = 256 << 10
"""10,000 dimensions of 24 characters."""
STREAM_BYTES: Final = 128 * _MIB
"""A stream: 1 KiB for each of 128k tokens."""
STREAM_PIECES: Final = _MIB
EVENT_BYTES: Final = 4 * _MIB
"""One event of a stream, or one line of it."""
FOREIGN_BYTES: Final = 4 << 10
"""Lines of a stream that are of no event, kept for an error that quotes them."""
ERROR_BYTES: Final = 64 << 10
"""How much of an error's body is read; the rest is left unread."""
ERROR_BODY_S: Final = 10.0
RETRY_AFTER_S: Final = 10.0
"""How long a request waits where an endpoint says to ask again after some seconds; longer is an error."""
UNLOAD_S: Final = 5.0
"""Until Ollama has said that it unloads a model; a load has no bound but that of every answer."""
DRAIN_BYTES: Final = 64 << 10
"""How much is read after the last event of a stream, to keep its connection."""
DRAIN_S: Final = 0.25
_EARLY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until a request is given up, by phase.

    `first_token_s` covers queueing and prompt evaluation of a streamed answer, and begins anew where the
    endpoint says that the evaluation got on. `between_tokens_s` covers each further token: comments, pings
    and empty deltas are none, and the time that the caller takes between two pieces is not counted.
    `answer_s` and `stream_s` bound the whole of an answer.
    """

    connect_s: float = 5.0
    first_token_s: float = 600.0
    between_tokens_s: float = 120.0
    answer_s: float = 1800.0
    stream_s: float = 6 * 3600.0


class Limits(TypedDict, total=False):
    """The bounds in time of one request.

    `timeouts` None, or left out, are those of the transport. `deadline` is the monotonic second by which
    the call has to end; None, or left out, without one.
    """

    timeouts: Timeouts | None
    deadline: float | None


class Bounds:
    """The bounds of one request. Every byte is counted here, and every wait asks for its limit here.

    `opened` is the network connection that was made for it, if any was.

    It stands where httpcore has a request's time-outs: those are handed to the connection as they are, see
    `backends.openai.connections.network`.

    Args:
        endpoint: where the request goes, which errors name.
        timeouts: the bounds in seconds.
        deadline: the monotonic second by which the call has to end; None without one.
        total_s: the bound of the whole request.
    """

    def __init__(
        self, endpoint: Endpoint, timeouts: Timeouts, deadline: float | None, total_s: float
    ) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts
        self.opened: object | None = None
        self.bytes = self.events = self.tokens = 0
        self._began = self._since = time.monotonic()
        self._deadline = math.inf if deadline is None else deadline
        self._total_s = total_s
        self._last = min(self._deadline, self._began + total_s)
        self._first = ("the whole answer", math.inf)
        self._by_tokens = False
        self._phase, self._phase_s = self._first
        self._phase_left_s = math.inf
        self._end = self._last
        """When a wait that began at `_since` has used up its time."""
        self.limit_bytes = HEAD_BYTES
        """How many bytes may come in all; more once the body begins."""

    # Time

    def begin(self, phase: str, limit_s: float) -> None:
        """Set the phase that every attempt begins with; each token begins one of its own then."""
        self._first, self._by_tokens = (phase, limit_s), True
        self.expect(phase, limit_s)

    def again(self) -> None:
        """Start the bounds anew, because the request is sent again."""
        self.expect(*self._first)
        self.limit_bytes = self.bytes + HEAD_BYTES

    def expect(self, phase: str, limit_s: float) -> None:
        """Begin a phase of the request, of at most so many seconds of waiting."""
        self._phase, self._phase_s, self._phase_left_s = phase, limit_s, limit_s
        self._since = time.monotonic()
        self._end = min(self._since + limit_s, self._last)

    def advanced(self) -> None:
        """Note that the evaluation of the prompt got on: the wait for the first token begins anew."""
        if not self.tokens:
            self.expect(*self._first)

    def waiting(self) -> None:
        """Note that the caller waits from here on.

        Raises:
            DeadlineExceeded: the call's deadline has passed.
        """
        self._since = time.monotonic()
        self._end = min(self._since + self._phase_left_s, self._last)
        if self._since >= self._deadline:
            raise self._too_late()

    def paused(self) -> None:
        """Note that the caller has got a piece and is busy with it."""
        self._phase_left_s -= time.monotonic() - self._since

    def heard(self, events: int, tokens: int) -> None:
        """Note the number of events so far, and of new tokens, which count as progress.

        Raises:
            EndpointError: more events than a stream may have.
        """
        self.events = events
        if tokens:
            self.tokens += tokens
        if tokens and self._by_tokens:
            self.expect("the next token", self.timeouts.between_tokens_s)
        if events > STREAM_PIECES:
            raise EndpointError(
                f"{self.endpoint.place} sent more than {STREAM_PIECES} events in one stream.",
                **self._facts(),
            )

    def left_s(self) -> float:
        """Seconds that the next wait may take, above 0.

        Raises:
            EngineTimeout: a phase or the whole request has used its time up.
            DeadlineExceeded: the call's deadline has passed.
        """
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise self.expired()
        return left_s

    def has_time(self) -> bool:
        """Whether a wait that is said to have used its time up ended well before."""
        return self._end - time.monotonic() > _EARLY_S

    def connect_s(self) -> float:
        """Seconds that connecting may take.

        Raises:
            KeepwarmError: as `left_s`.
        """
        return min(self.timeouts.connect_s, self.left_s())

    def expired(self) -> KeepwarmError:
        """The error of a wait that used up its time."""
        phase, total = self._since + self._phase_left_s, self._began + self._total_s
        if self._deadline <= min(phase, total):
            return self._too_late()
        if total < phase:
            return self._too_slow("the whole answer", self._total_s)
        return self._too_slow(self._phase, self._phase_s)

    def connecting_expired(self) -> KeepwarmError:
        """The error of connecting that used up its time."""
        if time.monotonic() >= self._deadline:
            return self._too_late()
        return self._too_slow("connecting", self.timeouts.connect_s)

    def _too_late(self) -> DeadlineExceeded:
        spent_s = time.monotonic() - self._began
        return DeadlineExceeded(
            f"{self.endpoint.place}: the call's deadline passed {spent_s:.3g} s after the request was sent"
            f"{self._in_words()}.",
            hint="Give more time, or ask for fewer tokens.",
            request_s=round(spent_s, 3),
            **self._facts(),
        )

    def _too_slow(self, what: str, limit_s: float) -> EngineTimeout:
        return EngineTimeout(
            f"{self.endpoint.place}: {what} took over {limit_s:g} s{self._in_words()}.",
            phase=what,
            limit_s=limit_s,
            **self._facts(),
        )

    def _in_words(self) -> str:
        if not self.bytes:
            return "; nothing had come"
        return f"; {self.bytes} bytes had come, {self.events} events, {self.tokens} tokens"

    def _facts(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "events": self.events, "tokens": self.tokens}

    # Bytes

    def took(self, n_bytes: int) -> None:
        """Count bytes from the network.

        Raises:
            EndpointError: more than the answer may have.
        """
        self.bytes += n_bytes
        if self.bytes > self.limit_bytes:
            raise EndpointError(
                f"{self.endpoint.place} sent more than an answer may have: over {self.limit_bytes} bytes"
                f"{self._in_words()}.",
                limit_bytes=self.limit_bytes,
                **self._facts(),
            )
