"""The results of calls, one class a verb, and how the model came to be there (`Residency`)."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

from backends.openai.protocol import Timings, Usage
from backends.openai.requests.audio import Segment

NO_USAGE = Usage()
_SHOWN = 60
_SAID = ("relaxed", "warnings")
"""What `repr` shows of a reply where it is not empty."""


@dataclass(frozen=True, slots=True)
class Residency:
    """What a request waited for until its model was resident.

    `cold`: the model was not resident when the request arrived. `load_s` is the duration of the load
    that the request waited for. `storage` says whether that load found the file in the page cache
    (`staged`) or read it from the disk (`cold`). `waited_s` is all waiting, from the call to the lease.
    `evicted` are the models that were evicted for it.
    """

    cold: bool = False
    waited_s: float = 0.0
    load_s: float = 0.0
    storage: str = "warm"
    evicted: tuple[str, ...] = ()
    slot: int | None = None
    engine: str = ""


@dataclass(frozen=True, slots=True)
class _Answered:
    """What every reply says of its call."""

    model: str
    _: KW_ONLY
    usage: Usage = NO_USAGE
    residency: Residency = Residency()
    total_s: float = 0.0
    retried: int = 0
    served_by: str = ""


@dataclass(frozen=True, slots=True)
class Reply(_Answered):
    """A whole answer.

    `ttft_s` is the time from the call to the first token: seen in a stream, and for a full answer
    from llama.cpp computed from its own timings; None where neither is known. `total_s` is the call.
    `resumed` counts how often it was interrupted for a request of higher priority and went on: at
    temperature 0 with the same tokens where the engine has one slot, with equally good ones elsewhere.
    `retried` is 1 where its engine ended before anything of the answer was delivered, this request was not
    the suspected one, and it was sent once more. `relaxed` are the places of the request's JSON schema
    that llama.cpp does not hold an answer to, as `$.properties.tags.uniqueItems`: check these yourself.
    `warnings` say what else was not honoured. `served_by` is the model that answered (another one where a
    `fallback` took over), with its address where it is remote.
    """

    content: str
    role: str = "assistant"
    finish_reason: str | None = None
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    timings: Timings | None = None
    ttft_s: float | None = None
    resumed: int = 0
    relaxed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.content

    def __repr__(self) -> str:
        said = [f"model={self.model!r}", f"content={_short(self.content)}"]
        said += [f"{len(self.tool_calls)} tool calls"] if self.tool_calls else []
        said += [f"finish_reason={self.finish_reason!r}"]
        said += [f"{self.usage.completion_tokens} tokens in {self.total_s:.2f} s"]
        said += [f"{name}={found!r}" for name in _SAID if (found := getattr(self, name))]
        return f"Reply({', '.join(said)})"

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed by the engine's own timings; None where it gives none, or for a single token.

        Engines count from the first token on: a single one would take some microseconds.
        """
        if self.timings is None or self.timings.predicted_ms <= 0 or self.timings.predicted_n < 2:
            return None
        return self.timings.predicted_n / self.timings.predicted_ms * 1e3


@dataclass(frozen=True, slots=True)
class EmbeddingReply(_Answered):
    """One vector per text, in the order of the texts. `retried`, `served_by`: as of `Reply`."""

    vectors: tuple[tuple[float, ...], ...]

    def __repr__(self) -> str:
        size = len(self.vectors[0]) if self.vectors else 0
        what = f"{len(self.vectors)} vectors of {size}"
        return f"EmbeddingReply(model={self.model!r}, {what}, {self.total_s:.2f} s)"


@dataclass(frozen=True, slots=True)
class CallReply(_Answered):
    """The result of a Python model. `value` is what it returned, of JSON values, bytes and numpy arrays.

    `retried`, `served_by`: as of `Reply`.
    """

    value: Any

    def __repr__(self) -> str:
        return f"CallReply(model={self.model!r}, value={_short(self.value)}, {self.total_s:.2f} s)"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document, its place among those that were sent, and its score: the higher, the more relevant."""

    index: int
    score: float
    document: str


@dataclass(frozen=True, slots=True)
class RerankReply(_Answered):
    """Documents by their relevance, the most relevant first. `retried`, `served_by`: as of `Reply`."""

    ranked: tuple[Ranked, ...]


@dataclass(frozen=True, slots=True)
class TranscriptionReply(_Answered):
    """What was said. `language` and `duration_s` where the model tells them; the rest as of `Reply`."""

    text: str
    segments: tuple[Segment, ...] = ()
    language: str | None = None
    duration_s: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SpeechReply(_Answered):
    """Sound: `audio` is a WAV file. `sample_rate`: samples a second. The rest is as of `Reply`."""

    audio: bytes
    sample_rate: int | None = None

    def __repr__(self) -> str:
        what = f"{len(self.audio)} bytes at {self.sample_rate} Hz"
        return f"SpeechReply(model={self.model!r}, {what}, {self.total_s:.2f} s)"


@dataclass(frozen=True, slots=True)
class TokenReply(_Answered):
    """The ids of tokens, in the order of the text. `retried`, `served_by`: as of `Reply`."""

    tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


VerbReply = RerankReply | TranscriptionReply | SpeechReply | TokenReply
Answer = Reply | EmbeddingReply | CallReply | VerbReply
"""What a call ends with."""


class PastCall(NamedTuple):
    """A call that has ended, as `Shim.history` tells it; neither what was asked nor what was answered.

    `started` is the time of the call in seconds since the epoch. `error` is the name and the words of the
    error that ended the call; None where it had none. A stream that was closed early has neither
    `finish_reason` nor `error`, and is told once more if it went on (`go_on`).
    """

    model: str
    operation: str
    started: float
    total_s: float
    ttft_s: float | None
    usage: Usage
    residency: Residency
    finish_reason: str | None
    error: str | None


def _short(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if isinstance(value, bytes):
        return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + b"...")
    return reprlib.repr(value)
