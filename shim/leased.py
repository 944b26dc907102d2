"""A call that has its lease: how it yields and goes on, what its failure means, how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.flows import Stream
from backends.openai.transport import Transport
from backends.openai.wire import Delta
from budget.errors import EngineDied, KeepwarmError, error_from_wire
from shim.call import Call
from shim.interruption import back, taken_back, to_yield, told, wanted_back
from shim.line import Line, Lines
from shim.reply import EmbeddingReply, Reply
from shim.silence import EXPLAIN_S
from shim.tracing import trace_call


@dataclass(frozen=True, slots=True)
class Door:
    """The ways to the keeper and to engines, both a thread's or both an event loop's."""

    lines: Lines
    transport: Transport


class Leased:
    """The flows of one call from its lease to its end.

    Args:
        call: it has its grant.
        door: the way it runs.
        line: the connection that holds its lease; None at a remote endpoint, which needs none.
    """

    def __init__(self, call: Call, door: Door, line: Line | None) -> None:
        self.call = call
        self._door = door
        self._line = line
        self._may_yield = line is not None and call.preemptible

    async def source(self, deltas: Sequence[Delta], source: Stream[Delta]) -> Stream[Delta]:
        """Asked between two pieces: where the next one comes from. Yields the lease if it has to.

        Raises:
            KeepwarmError: the keeper is gone, it took the lease back, or the answer could not go on.
        """
        call, line = self.call, self._line
        if line is None or not (notices := line.notices()):
            return source
        if (error := taken_back(call, notices)) is not None:
            raise await self.explained(error) if isinstance(error, EngineDied) else error
        if not self._may_yield or not wanted_back(call, notices):
            return source
        progress = to_yield(call, deltas)
        if progress is None:
            self._may_yield = False
            return source
        await source.aclose()
        tokens = back(call, await line.ask("yielded", **told(call, progress)))
        resume, deadline = self._door.transport.resume, call.deadline
        return await resume(call.held.endpoint, call.request, tokens, progress, deadline=deadline)

    async def explained(self, error: EngineDied) -> KeepwarmError:
        """A broken connection to a local engine, with the keeper's account of what happened."""
        if self._line is None:
            return error
        grant = self.call.held
        try:
            said = await self._line.ask(
                "diagnose", within_s=EXPLAIN_S, engine=grant.engine, generation=grant.generation
            )
            if said["death"]:
                return error_from_wire(said["death"])
            return taken_back(self.call, self._line.notices()) or error
        except KeepwarmError as gone:
            return gone

    def ended(self, answer: Reply | EmbeddingReply | None, error: BaseException | None) -> None:
        """Give the lease and the connection back; an interrupted call closes it instead."""
        line = self._line
        if line is not None:
            try:
                if error is not None and not isinstance(error, Exception):
                    line.close()
                else:
                    line.tell("end", lease=self.call.held.lease, **_spent(answer))
                    self._door.lines.give(line)
            except KeepwarmError:
                line.close()
        trace_call(self.call, answer, error)

    def forgotten(self) -> None:
        """Nothing refers to the call any more: its lease is back with its connection."""
        if self._line is not None:
            self._line.close()


def _spent(answer: Reply | EmbeddingReply | None) -> dict[str, Any]:
    """What the keeper learns from a finished request: the engine's own figures, where it has any."""
    timings = answer.timings if isinstance(answer, Reply) else None
    if timings is None:
        return {}
    figures = {
        "prompt_n": timings.prompt_n,
        "prompt_ms": timings.prompt_ms,
        "cache_n": timings.cache_n,
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
    }
    return {"spent": figures}
