"""The verbs beside chat and embeddings: rerank, transcribe, speak, tokenize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

from backends.flows import run_blocking
from backends.openai.requests.audio import SpeakRequest, Speech, TranscribeRequest, Transcript
from backends.openai.requests.rerank import Ranking, RerankRequest
from backends.openai.requests.tokens import TokenizeRequest
from backends.openai.requests.verb_request import VerbRequest
from budget.errors import InvalidRequest
from shim.calls.call import Call, Messages
from shim.calls.calls import Calls
from shim.calls.options.chat_options import CallOptions
from shim.calls.session import Session
from shim.replies import (
    Ranked,
    RerankReply,
    SpeechReply,
    TokenReply,
    TranscriptionReply,
)

_Value = TypeVar("_Value")


class VerbsBesideChat:
    """What a `Shim` does beside chats, embeddings and calls; each verb plain and awaited."""

    _session: Session
    _sync: Calls
    _async: Calls

    # Reranking

    def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        **options: Unpack[CallOptions],
    ) -> RerankReply:
        """Documents by their relevance for a query, the most relevant first.

        Args:
            model: a name of the configuration.
            query: what is looked for.
            documents: texts.
            top_n: the reply has at most so many of them; None: all.
            options: those of every call (`CallOptions`).

        Raises:
            KeepwarmError: as `chat`.
        """
        call, request = self._verb(model, RerankRequest(query, documents, top_n), options)
        return run_blocking(
            self._sync.answer(call, self._sync.ask, request, _ranked(call, documents))
        )

    async def arerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        **options: Unpack[CallOptions],
    ) -> RerankReply:
        """As `rerank`, awaited."""
        call, request = self._verb(model, RerankRequest(query, documents, top_n), options)
        return await self._async.answer(call, self._async.ask, request, _ranked(call, documents))

    # Audio

    def transcribe(
        self,
        model: str,
        audio: bytes | Path,
        language: str | None = None,
        **options: Unpack[CallOptions],
    ) -> TranscriptionReply:
        """What is said in a recording, with segments where the model tells them.

        Args:
            model: a name of the configuration.
            audio: an audio file: its bytes, or its path.
            language: the language that is spoken, as `en`; None leaves it to the model.
            options: those of every call (`CallOptions`).

        Raises:
            KeepwarmError: as `chat`.
        """
        call, request = self._verb(model, TranscribeRequest(_bytes_of(audio), language), options)
        return run_blocking(self._sync.answer(call, self._sync.ask, request, _transcribed(call)))

    async def atranscribe(
        self,
        model: str,
        audio: bytes | Path,
        language: str | None = None,
        **options: Unpack[CallOptions],
    ) -> TranscriptionReply:
        """As `transcribe`, awaited."""
        call, request = self._verb(model, TranscribeRequest(_bytes_of(audio), language), options)
        return await self._async.answer(call, self._async.ask, request, _transcribed(call))

    def speak(
        self, model: str, text: str, voice: str | None = None, **options: Unpack[CallOptions]
    ) -> SpeechReply:
        """A text, spoken: a WAV file and its sample rate.

        Args:
            model: a name of the configuration.
            text: what is said.
            voice: a voice by its name; None leaves it to the model.
            options: those of every call (`CallOptions`).

        Raises:
            KeepwarmError: as `chat`.
        """
        call, request = self._verb(model, SpeakRequest(text, voice), options)
        return run_blocking(self._sync.answer(call, self._sync.ask, request, _spoken(call)))

    async def aspeak(
        self, model: str, text: str, voice: str | None = None, **options: Unpack[CallOptions]
    ) -> SpeechReply:
        """As `speak`, awaited."""
        call, request = self._verb(model, SpeakRequest(text, voice), options)
        return await self._async.answer(call, self._async.ask, request, _spoken(call))

    # Tokens

    def tokenize(self, model: str, text: Messages, **options: Unpack[CallOptions]) -> TokenReply:
        """The tokens of a text as the model sees it; of chat messages, those of the whole prompt.

        A text stands alone: no token that a model begins every prompt with is added.

        Raises:
            KeepwarmError: as `chat`.
        """
        call, request = self._verb(model, TokenizeRequest(text), options)
        return run_blocking(self._sync.answer(call, self._sync.ask, request, _tokens(call)))

    async def atokenize(
        self, model: str, text: Messages, **options: Unpack[CallOptions]
    ) -> TokenReply:
        """As `tokenize`, awaited."""
        call, request = self._verb(model, TokenizeRequest(text), options)
        return await self._async.answer(call, self._async.ask, request, _tokens(call))

    def count_tokens(self, model: str, text: Messages, **options: Unpack[CallOptions]) -> int:
        """The number of tokens of a text, or of the prompt that chat messages make.

        Raises:
            KeepwarmError: as `chat`.
        """
        return len(self.tokenize(model, text, **options))

    async def acount_tokens(
        self, model: str, text: Messages, **options: Unpack[CallOptions]
    ) -> int:
        """As `count_tokens`, awaited."""
        return len(await self.atokenize(model, text, **options))

    def _verb(
        self, model: str, request: VerbRequest[_Value], options: Mapping[str, Any]
    ) -> tuple[Call, VerbRequest[_Value]]:
        return self._session.call(model, "", options, request.verb), request


def _bytes_of(audio: bytes | Path) -> bytes:
    if not isinstance(audio, Path):
        return audio
    try:
        return audio.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{audio} cannot be read: {error.strerror or error}.") from None


def _ranked(call: Call, documents: Sequence[str]) -> Callable[[Ranking], RerankReply]:
    def finish(found: Ranking) -> RerankReply:
        rows = tuple(Ranked(index, score, documents[index]) for index, score in found.ranked)
        return call.other_reply(RerankReply, ranked=rows, usage=found.usage)

    return finish


def _transcribed(call: Call) -> Callable[[Transcript], TranscriptionReply]:
    def finish(found: Transcript) -> TranscriptionReply:
        return call.other_reply(
            TranscriptionReply,
            text=found.text,
            segments=found.segments,
            language=found.language,
            duration_s=found.duration_s,
        )

    return finish


def _spoken(call: Call) -> Callable[[Speech], SpeechReply]:
    def finish(found: Speech) -> SpeechReply:
        return call.other_reply(SpeechReply, audio=found.audio, sample_rate=found.sample_rate)

    return finish


def _tokens(call: Call) -> Callable[[tuple[int, ...]], TokenReply]:
    def finish(found: tuple[int, ...]) -> TokenReply:
        return call.other_reply(TokenReply, tokens=found)

    return finish
