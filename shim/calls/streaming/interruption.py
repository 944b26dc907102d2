"""Yielding a lease in mid-answer: when, at which progress, and the fields of the op. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from backends.flows import Stream
from backends.openai.protocol import ChatRequest, Delta, Usage
from backends.openai.resume import AnswerSoFar, counted
from budget.errors import KeepwarmError, error_from_wire
from shim.calls.call import Call
from shim.wire.json_lines import Message


class FullContext(Stream[Delta]):
    """The rest of an interrupted answer whose text fills the context: an end, as an engine says it."""

    def __init__(self, said: AnswerSoFar) -> None:
        usage = Usage(said.prompt_tokens, said.tokens)
        self._rest = [Delta(finish_reason="length", usage=usage)]

    async def __anext__(self) -> Delta:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()

    async def aclose(self) -> None:
        """Nothing is held."""
        self._rest.clear()


def outgoing(call: Call) -> ChatRequest:
    """The request to send. A request that may be interrupted asks for token counts."""
    return counted(call.request) if call.preemptible else call.request


def wanted_back(call: Call, notices: Iterable[Message]) -> bool:
    """Whether the keeper asks for the lease that a call holds."""
    return any(n.get("notice") == "yield" and n.get("lease") == call.held.lease for n in notices)


def taken_back(call: Call, notices: Iterable[Message]) -> KeepwarmError | None:
    """The error with which the keeper took back the lease of a call, or None if it did not."""
    for notice in notices:
        if notice.get("notice") == "revoked" and notice.get("lease") == call.held.lease:
            return error_from_wire(notice["error"])
    return None


def to_yield(call: Call, deltas: Sequence[Delta]) -> AnswerSoFar | None:
    """The progress of an answer that yields now; None if it cannot yield, and runs to its end."""
    if deltas[-1].finish_reason is not None:
        return None
    progress = AnswerSoFar.of(deltas)
    return progress if progress.resumable(call.request) else None


def yield_fields(call: Call, progress: AnswerSoFar) -> dict[str, Any]:
    """The fields of the op that yields a call's lease."""
    return {
        "lease": call.held.lease,
        "prompt_tokens": progress.prompt_tokens,
        "tokens": progress.tokens,
    }


def back(call: Call, answer: Message) -> list[int] | None:
    """Note the new lease; returns all tokens so far, or None if the keeper could not save them."""
    call.granted(answer)
    tokens = answer.get("tokens")
    return tokens if isinstance(tokens, list) else None
