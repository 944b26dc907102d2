"""The module-level functions, on one default `Shim` per process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from backends.machine.forks import renew_after_fork
from backends.openai.protocol import Delta
from shim.calls.call import Messages
from shim.calls.declaring import Plan
from shim.calls.options.chat_options import CallOptions, ChatOptions
from shim.calls.streaming.held_stream import StreamStart
from shim.calls.streaming.result_stream import AsyncResultStream, ResultStream
from shim.client import Shim
from shim.replies import (
    CallReply,
    EmbeddingReply,
    PastCall,
    Reply,
    RerankReply,
    SpeechReply,
    TokenReply,
    TranscriptionReply,
)
from shim.streams import AsyncReplyStream, ReplyStream
from traces import RunTrace

if TYPE_CHECKING:
    from shim.calls.http_clients import HttpClient, HttpStart


class _Default:
    """Holds the default shim. Safe from any thread and after `fork()`."""

    def __init__(self) -> None:
        self._shim: Shim | None = None
        self._lock = threading.Lock()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: make a new lock, because the thread that may hold the old one is not here."""
        self._lock = threading.Lock()

    def get(self) -> Shim:
        """The shim; made when there is none."""
        with self._lock:
            if self._shim is None:
                self._shim = Shim()
            return self._shim

    def set(self, shim: Shim) -> None:
        """Replace the shim."""
        with self._lock:
            self._shim = shim


_DEFAULT = _Default()


def default_shim() -> Shim:
    """The process's default `Shim`, made from the configuration that is found, at first use.

    Raises:
        ConfigError: no configuration is found, or it is not valid.
    """
    return _DEFAULT.get()


def use(shim: Shim) -> None:
    """Make `shim` the default one; the caller still closes it."""
    _DEFAULT.set(shim)


def chat(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Reply:
    """One whole answer: `Shim.chat` of the default shim."""
    return default_shim().chat(model, messages, **options)


def stream(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ReplyStream:
    """The answer piece by piece: `Shim.stream` of the default shim."""
    return default_shim().stream(model, messages, **options)


def embed(model: str, texts: Sequence[str] | str, **options: Unpack[CallOptions]) -> EmbeddingReply:
    """One vector per text: `Shim.embed` of the default shim."""
    return default_shim().embed(model, texts, **options)


async def achat(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Reply:
    """One whole answer, awaited: `Shim.achat` of the default shim."""
    return await default_shim().achat(model, messages, **options)


def astream(
    model: str, messages: Messages, **options: Unpack[ChatOptions]
) -> StreamStart[AsyncReplyStream, Delta]:
    """The answer piece by piece, for `async with` and `async for`: `Shim.astream` of the default shim."""
    return default_shim().astream(model, messages, **options)


async def aembed(
    model: str, texts: Sequence[str] | str, **options: Unpack[CallOptions]
) -> EmbeddingReply:
    """One vector per text, awaited: `Shim.aembed` of the default shim."""
    return await default_shim().aembed(model, texts, **options)


def call(model: str, /, **payload: Any) -> CallReply:
    """The result of a Python model: `Shim.call` of the default shim."""
    return default_shim().call(model, **payload)


def stream_call(model: str, /, **payload: Any) -> ResultStream:
    """The results of a Python model, one by one: `Shim.stream_call` of the default shim."""
    return default_shim().stream_call(model, **payload)


async def acall(model: str, /, **payload: Any) -> CallReply:
    """The result of a Python model, awaited: `Shim.acall` of the default shim."""
    return await default_shim().acall(model, **payload)


def astream_call(model: str, /, **payload: Any) -> StreamStart[AsyncResultStream, Any]:
    """The results of a Python model, for `async for`: `Shim.astream_call` of the default shim."""
    return default_shim().astream_call(model, **payload)


def http(model: str, **options: Unpack[CallOptions]) -> HttpClient:
    """A client for a model's own paths: `Shim.http` of the default shim."""
    return default_shim().http(model, **options)


def ahttp(model: str, **options: Unpack[CallOptions]) -> HttpStart:
    """The same for asyncio: `Shim.ahttp` of the default shim."""
    return default_shim().ahttp(model, **options)


def rerank(
    model: str,
    query: str,
    documents: Sequence[str],
    top_n: int | None = None,
    **options: Unpack[CallOptions],
) -> RerankReply:
    """Documents by their relevance for a query: `Shim.rerank` of the default shim."""
    return default_shim().rerank(model, query, documents, top_n, **options)


async def arerank(
    model: str,
    query: str,
    documents: Sequence[str],
    top_n: int | None = None,
    **options: Unpack[CallOptions],
) -> RerankReply:
    """Documents by their relevance for a query, awaited: `Shim.arerank` of the default shim."""
    return await default_shim().arerank(model, query, documents, top_n, **options)


def transcribe(
    model: str, audio: bytes | Path, language: str | None = None, **options: Unpack[CallOptions]
) -> TranscriptionReply:
    """What is said in a recording: `Shim.transcribe` of the default shim."""
    return default_shim().transcribe(model, audio, language, **options)


async def atranscribe(
    model: str, audio: bytes | Path, language: str | None = None, **options: Unpack[CallOptions]
) -> TranscriptionReply:
    """What is said in a recording, awaited: `Shim.atranscribe` of the default shim."""
    return await default_shim().atranscribe(model, audio, language, **options)


def speak(
    model: str, text: str, voice: str | None = None, **options: Unpack[CallOptions]
) -> SpeechReply:
    """A text, spoken: `Shim.speak` of the default shim."""
    return default_shim().speak(model, text, voice, **options)


async def aspeak(
    model: str, text: str, voice: str | None = None, **options: Unpack[CallOptions]
) -> SpeechReply:
    """A text, spoken, awaited: `Shim.aspeak` of the default shim."""
    return await default_shim().aspeak(model, text, voice, **options)


def tokenize(model: str, text: Messages, **options: Unpack[CallOptions]) -> TokenReply:
    """The tokens of a text or of chat messages: `Shim.tokenize` of the default shim."""
    return default_shim().tokenize(model, text, **options)


async def atokenize(model: str, text: Messages, **options: Unpack[CallOptions]) -> TokenReply:
    """The tokens of a text or of chat messages, awaited: `Shim.atokenize` of the default shim."""
    return await default_shim().atokenize(model, text, **options)


def count_tokens(model: str, text: Messages, **options: Unpack[CallOptions]) -> int:
    """The number of tokens of a text or of chat messages: `Shim.count_tokens` of the default shim."""
    return default_shim().count_tokens(model, text, **options)


async def acount_tokens(model: str, text: Messages, **options: Unpack[CallOptions]) -> int:
    """The number of tokens of a text or of messages, awaited: `Shim.acount_tokens` of the default shim."""
    return await default_shim().acount_tokens(model, text, **options)


def load(model: str, **options: Any) -> Mapping[str, Any]:
    """Make a model resident: `Shim.load` of the default shim."""
    return default_shim().load(model, **options)


def pin(model: str, *, persist: bool = False, **options: Any) -> Mapping[str, Any]:
    """Make a model resident and keep it: `Shim.pin` of the default shim."""
    return default_shim().pin(model, persist=persist, **options)


def unpin(model: str) -> None:
    """Let a pinned model be evicted again: `Shim.unpin` of the default shim."""
    default_shim().unpin(model)


def plan(models: Sequence[str] = ()) -> Plan:
    """Declare which models will be used next: `Shim.plan` of the default shim."""
    return default_shim().plan(models)


def declare(models: Sequence[str]) -> None:
    """Declare which models will be used next: `Shim.declare` of the default shim."""
    default_shim().declare(models)


async def adeclare(models: Sequence[str]) -> None:
    """Declare which models will be used next, awaited: `Shim.adeclare` of the default shim."""
    await default_shim().adeclare(models)


def release(model: str) -> None:
    """Mark a model as the first victim: `Shim.release` of the default shim."""
    default_shim().release(model)


def unload(model: str) -> bool:
    """Unload a model once no request leases it: `Shim.unload` of the default shim."""
    return default_shim().unload(model)


def history() -> list[PastCall]:
    """The last calls that have ended: `Shim.history` of the default shim."""
    return default_shim().history()


def traced(service: str = "keepwarm") -> RunTrace:
    """A run as `[trace]` of the configuration describes it: `Shim.traced` of the default shim."""
    return default_shim().traced(service)


def status() -> dict[str, Any]:
    """The resident models and the reasons: `Shim.status` of the default shim."""
    return default_shim().status()
