"""The reader of a streamed answer: bytes in, deltas out. An answer that came whole is one delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.answers.foreign_errors import broken, error_in_answer, found_error, unreadable
from backends.openai.answers.sse import SseParser
from backends.openai.masking import Secrets
from backends.openai.protocol import Delta, decode, parse_chunk
from budget.errors import EndpointError, KeepwarmError
from traces.text import clean

_DONE: Final = b"[DONE]"


class StreamReader:
    """Bytes of a streamed answer in, deltas out; `done` once the stream has said `[DONE]`.

    `events` counts all events, also those without a delta; empty deltas are left out. `evaluated` are
    the tokens of the prompt that llama.cpp says to have evaluated.
    """

    def __init__(self, endpoint: Endpoint, secrets: Secrets, content_type: str = "") -> None:
        self._endpoint = endpoint
        self._secrets = secrets
        self._content_type = content_type
        self._parser = SseParser()
        self._content, self._reasoning = _Halves(), _Halves()
        self._finished = self._answered = False
        self._said: list[str] = []
        self._index: Any = None
        self._problem: KeepwarmError | None = None
        self.events = 0
        self.evaluated = 0
        self.done = False

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas that these bytes complete. What is wrong behind some of them is raised by `check`.

        Raises:
            KeepwarmError: the stream carries an error, or is not of this protocol.
        """
        self.check()
        deltas: list[Delta] = []
        try:
            events = self._parser.feed(chunk)
        except EndpointError as exc:
            raise EndpointError(f"{self._endpoint.place}: {exc.message}", hint=exc.hint) from None
        try:
            for data in events:
                self._take(data, deltas)
                if self.done:
                    break
        except KeepwarmError as problem:
            if not deltas:
                raise
            self._problem = problem
        return deltas

    def check(self) -> None:
        """Go on, if nothing was wrong behind the deltas that `feed` returned.

        Raises:
            KeepwarmError: as `feed`.
        """
        if self._problem is not None:
            raise self._problem

    def ended(self) -> list[Delta]:
        """Note the end of the body; returns the deltas of a last event without an empty line after it.

        Raises:
            KeepwarmError: as `check`.
            EngineDied: a local engine stopped before its answer was whole.
            EndpointUnavailable: a remote endpoint did.
            EndpointError: the body was no stream of events.
        """
        self.check()
        deltas: list[Delta] = []
        for data in self._parser.finish():
            if self._parser.is_document or data.strip() == _DONE or _is_json(data):
                self._take(data, deltas)
                if self._parser.is_document:
                    self._end_of_document(data)
        self.done = self.done or self._finished
        if not self.done:
            raise self._incomplete()
        return deltas

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._said)

    def _take(self, data: bytes, deltas: list[Delta]) -> None:
        self.events += 1
        bare = data.strip()
        if bare == _DONE or not bare:
            self.done = bool(bare)
            if self.done and not self._answered:
                problem = EndpointError("it ended its stream before any answer.")
                raise unreadable(self._endpoint, problem, self._parser.foreign, self._secrets)
            return
        try:
            value = decode(data)
            found = found_error(value)
            delta = self._delta(value) if found is None else Delta()
        except EndpointError as exc:
            raise unreadable(self._endpoint, exc, data, self._secrets) from None
        if found is not None:
            error = error_in_answer(self._endpoint, found, self._secrets)
            error.facts["text"] = self.text
            if error.facts.get("unparsed") and not self.text:
                error.hint = (
                    "Nothing of it was sent. A whole answer to texts alone, without a stream, tools, a"
                    " shape or extra, is given as it is generated."
                )
            raise error
        if "prompt_progress" in value and not (delta.is_token or delta.finish_reason):
            self._note_progress(value["prompt_progress"])
            return
        self._finished = self._finished or delta.finish_reason is not None
        self._answered = self._answered or bool(value.get("choices")) or delta.is_token
        if not delta.is_empty:
            deltas.append(delta)
            self._said.append(delta.content)

    def _note_progress(self, said: Any) -> None:
        done = said.get("processed") if isinstance(said, Mapping) else None
        if isinstance(done, int):
            self.evaluated = max(self.evaluated, done)

    def _delta(self, value: Mapping[str, Any]) -> Delta:
        delta = parse_chunk(value)
        if delta.content:
            choice = value["choices"][0]
            index = choice.get("index", self._index)
            if self._index is None:
                self._index = index
            elif self._index != index:
                # A piece of another answer: more than one was asked for.
                return Delta(usage=delta.usage, timings=delta.timings)
            if choice.get("message") and not choice.get("delta") and delta.content == self.text:
                # The whole answer once more, after its pieces.
                return replace(delta, content="", reasoning="", tool_calls=(), logprobs=())
        if delta.content:
            content = self._content.join(delta.content)
            if content is not delta.content:
                delta = replace(delta, content=content)
        if delta.reasoning:
            reasoning = self._reasoning.join(delta.reasoning)
            if reasoning is not delta.reasoning:
                delta = replace(delta, reasoning=reasoning)
        return delta

    def _end_of_document(self, data: bytes) -> None:
        """The end of an answer that came whole, though a stream was asked for."""
        if not self._answered:
            raise self._no_stream(data)
        self._finished = True

    def _no_stream(self, said: bytes) -> EndpointError:
        problem = EndpointError(f"it sent no stream of events ({self._content_type or 'no type'}).")
        return unreadable(self._endpoint, problem, said, self._secrets)

    def _incomplete(self) -> KeepwarmError:
        foreign = self._parser.foreign.strip()
        if foreign and not self.events:
            return self._no_stream(foreign)
        return broken(self._endpoint, "the stream ended without [DONE]", self.text)


class _Halves:
    """Joins the halves of characters that JSON split into two texts."""

    def __init__(self) -> None:
        self._held = ""

    def join(self, text: str) -> str:
        """The text without the half that it ends in, which goes before the next one."""
        if not self._held and text.isascii():
            return text
        text = self._held + text
        self._held = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return clean(text.removesuffix(self._held) if self._held else text)


def _is_json(data: bytes) -> bool:
    try:
        decode(data)
    except EndpointError:
        return False
    return True


ReaderKind = Callable[[Endpoint, Secrets, str], StreamReader]
"""Makes a reader of an endpoint, its secrets and the content type of its answer."""
