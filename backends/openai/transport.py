"""The data plane: chat, stream and embed as flows over the connections of a thread or an event loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar, Unpack

from backends.base import Endpoint
from backends.openai.answers import ollama
from backends.openai.answers.delta_stream import AsyncDeltaStream
from backends.openai.answers.reading import ReaderKind, StreamReader
from backends.openai.connections.bounds import (
    CHAT_BYTES,
    EMBED_BYTES,
    EMBED_BYTES_PER_TEXT,
    ERROR_BODY_S,
    ERROR_BYTES,
    RETRY_AFTER_S,
    STREAM_BYTES,
    UNLOAD_S,
    Bounds,
    Limits,
    Timeouts,
)
from backends.openai.connections.pools import Answer, Pools
from backends.openai.connections.prompt_bound import TOKEN_BYTES, check_prompt
from backends.openai.exchange import (
    CHAT_PATH,
    EMBED_PATH,
    HTTP_ERRORS,
    JSON_TYPE,
    Exchange,
    header,
)
from backends.openai.extras import RefusedExtras, without
from backends.openai.protocol import (
    ChatRequest,
    Completion,
    Embeddings,
    assemble,
    chat_body,
    comes_in_events,
    embed_body,
    parse_completion,
    parse_embeddings,
)
from backends.openai.requests.tokens import TokenizeRequest
from backends.openai.requests.verb_request import Question, VerbRequest
from backends.openai.resume import (
    RESUME_PATH,
    TEMPLATE_PATH,
    AnswerSoFar,
    ResumeReader,
    is_plain,
    resume_body,
    template_body,
    templated,
    tokens_to_repeat,
)
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    InvalidRequest,
    KeepwarmError,
    QueueFull,
)

_OK = 200
_ENCODING: Final = b"content-encoding"
_PROBABILITIES: Final = frozenset({"logprobs", "n_probs"})
SHORT_TOKENS: Final = 32
"""A whole answer of so many tokens is not worth the cost of a stream, and ends soon."""
_Value = TypeVar("_Value")


class Transport:
    """Requests over the connections of a thread or an event loop.

    Every answer has bounds, in bytes and in seconds (`connections.bounds`). A compressed answer is refused:
    identity is asked for, and what it expands to has no bound. Redirects are not followed. What endpoints
    say is masked (`masking`).
    """

    def __init__(self, pools: Pools, timeouts: Timeouts | None = None) -> None:
        self.pools = pools
        self._timeouts = timeouts or Timeouts()
        self._extras = RefusedExtras()

    async def chat(
        self, endpoint: Endpoint, request: ChatRequest, **limits: Unpack[Limits]
    ) -> Completion:
        """A whole answer; interrupting or cancelling it closes the connection.

        Raises:
            KeepwarmError: the tree of `budget.errors`; `EngineDied` when a local engine is gone,
                `DeadlineExceeded` at the deadline.
        """
        streams = endpoint.slots > 1 and _is_collected(endpoint, request)
        body = chat_body(endpoint, request, stream=streams)
        exchange = self._exchange(endpoint, CHAT_PATH, body, limits)
        try:
            if streams:
                return await _whole(await self._stream(exchange, StreamReader))
            raw = await self._fetch(exchange, CHAT_BYTES)
            if not raw.startswith(b"{") and comes_in_events(raw):
                return self._joined(exchange, raw)
            return exchange.parsed(raw, parse_completion)
        except EndpointError as error:
            as_text = endpoint.is_known and is_plain(request)
            if not error.facts.get("unparsed") or (streams and not as_text):
                raise
        if as_text:
            # The text as it is generated, which the engine takes apart for chats alone.
            stream = await self.resume(endpoint, request, None, AnswerSoFar(), **limits)
        else:
            # As a stream, so that what it says is here even where the engine cannot read that again.
            stream = await self.stream(endpoint, request, **limits)
        return replace(await _whole(stream), unparsed=as_text)

    @staticmethod
    def _joined(exchange: Exchange, raw: bytes) -> Completion:
        """An answer that came as a stream, though a whole one was asked for."""
        reader = StreamReader(exchange.endpoint, exchange.secrets)
        try:
            deltas = reader.feed(raw)
            return assemble(deltas if reader.done else [*deltas, *reader.ended()])
        except KeepwarmError as error:
            exchange.secrets.clean(error)
            raise

    async def stream(
        self, endpoint: Endpoint, request: ChatRequest, **limits: Unpack[Limits]
    ) -> AsyncDeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        waits_s = (limits.get("timeouts") or self._timeouts).first_token_s
        body = chat_body(endpoint, request, stream=True, progress=waits_s < math.inf)
        exchange = self._exchange(endpoint, CHAT_PATH, body, limits, streamed=True)
        return await self._stream(exchange, StreamReader)

    async def resume(
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        tokens: Sequence[int] | None,
        progress: AnswerSoFar,
        **limits: Unpack[Limits],
    ) -> AsyncDeltaStream:
        """The rest of an interrupted answer, from all tokens so far; from their text when None.

        The last token may be missing: it is said again, or the text serves where it could differ.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        prompt: Sequence[int] | str
        repeat = tokens_to_repeat(request, tokens, progress)
        if tokens is None or repeat is None:
            body = template_body(request)
            exchange = self._exchange(endpoint, TEMPLATE_PATH, body, limits)
            raw = await self._fetch(exchange, CHAT_BYTES)
            progress = progress.by_text()
            prompt = exchange.parsed(raw, templated) + progress.text
        else:
            prompt = tokens
        body = resume_body(endpoint, request, prompt, progress, repeat or 0)
        exchange = self._exchange(endpoint, RESUME_PATH, body, limits, streamed=True)
        return await self._stream(
            exchange, partial(ResumeReader, before=progress, repeat=repeat or 0)
        )

    async def embed(
        self, endpoint: Endpoint, texts: Sequence[str], **limits: Unpack[Limits]
    ) -> Embeddings:
        """One vector per text.

        Raises:
            KeepwarmError: as `chat`.
        """
        body = embed_body(endpoint, texts)
        exchange = self._exchange(endpoint, EMBED_PATH, body, limits)
        raw = await self._fetch(exchange, EMBED_BYTES + EMBED_BYTES_PER_TEXT * len(texts))
        return exchange.parsed(raw, partial(parse_embeddings, count=len(texts)))

    async def ask(
        self, endpoint: Endpoint, request: VerbRequest[_Value], **limits: Unpack[Limits]
    ) -> _Value:
        """The value of a verb that is no chat: reranking, tokens, audio.

        Raises:
            KeepwarmError: as `chat`.
        """
        question = request.question(endpoint)
        if isinstance(request, TokenizeRequest) and request.chat and endpoint.backend != "vllm":
            question = await self._templated(endpoint, request, request.chat, limits)
        exchange = self._exchange(
            endpoint, question.path, question.body, limits, content_type=question.content_type
        )
        raw = await self._fetch(exchange, question.limit_bytes)
        return exchange.parsed(raw, request.parse, request.read)

    async def _templated(
        self, endpoint: Endpoint, request: TokenizeRequest, chat: ChatRequest, limits: Limits
    ) -> Question:
        """The question of messages to llama-server, which renders them on a path of its own."""
        exchange = self._exchange(endpoint, TEMPLATE_PATH, template_body(chat), limits)
        raw = await self._fetch(exchange, CHAT_BYTES)
        return request.of_prompt(endpoint, exchange.parsed(raw, templated))

    async def reside(self, endpoint: Endpoint, keep_alive_s: float | None) -> None:
        """Let Ollama load a model and keep it for so many seconds; 0 unloads it, within `UNLOAD_S`.

        Raises:
            KeepwarmError: as `chat`.
        """
        body = ollama.residency_body(endpoint, keep_alive_s)
        limits = Limits()
        if keep_alive_s == 0:
            limits["timeouts"] = Timeouts(connect_s=UNLOAD_S, answer_s=UNLOAD_S)
        exchange = self._exchange(endpoint, ollama.CHAT_PATH, body, limits)
        exchange.parsed(await self._fetch(exchange, CHAT_BYTES), parse_completion)

    async def residents(self, endpoint: Endpoint, *, within_s: float) -> Sequence[ollama.Resident]:
        """The models that Ollama has in memory now.

        Raises:
            KeepwarmError: it does not answer, or otherwise than it is documented.
        """
        limits = Limits(timeouts=Timeouts(connect_s=within_s, answer_s=within_s))
        exchange = self._exchange(endpoint, ollama.PS_PATH, None, limits)
        return ollama.residents(await self._fetch(exchange, CHAT_BYTES))

    async def probe(self, endpoint: Endpoint, path: str, *, within_s: float) -> int:
        """The status with which a path answers; its body is not read.

        Raises:
            KeepwarmError: it does not answer.
        """
        limits = Limits(timeouts=Timeouts(connect_s=within_s, answer_s=within_s))
        exchange = self._exchange(endpoint, path, None, limits)
        try:
            answer = await self._begun(exchange, whatever=True)
            await answer.close()
        except KeepwarmError as error:
            exchange.secrets.clean(error)
            raise
        return answer.status

    async def aclose(self) -> None:
        """Close this thread's or the running loop's idle connections; it can be used again."""
        await self.pools.close()

    def _exchange(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes | None,
        limits: Limits,
        *,
        streamed: bool = False,
        content_type: bytes = JSON_TYPE,
    ) -> Exchange:
        timeouts = limits.get("timeouts") or self._timeouts
        total_s = timeouts.stream_s if streamed else timeouts.answer_s
        bounds = Bounds(endpoint, timeouts, limits.get("deadline"), total_s)
        if streamed:
            bounds.begin("the first token", timeouts.first_token_s)
        route = self.pools.to(endpoint).route
        if body is not None and not route.is_known and content_type == JSON_TYPE:
            body = self._extras.applied(endpoint, body)
        context = endpoint.context_per_slot if content_type == JSON_TYPE else None
        if context is not None and body is not None and len(body) > context * TOKEN_BYTES:
            check_prompt(endpoint, body)
        if body is not None and endpoint.backend == "ollama":
            path, body = ollama.asked(endpoint, path, body)
        exchange = Exchange(endpoint, route, path, body, bounds, content_type)
        if endpoint.api_key_env or endpoint.key_file or route.secret_urls:
            exchange.read_key()
        return exchange

    async def _fetch(self, exchange: Exchange, limit_bytes: int) -> bytes:
        try:
            answer = await self._begun(exchange)
            try:
                bounds = exchange.bounds
                bounds.limit_bytes = bounds.bytes + limit_bytes
                body = bytearray()
                while (chunk := await answer.chunk()) is not None:
                    body += chunk
                whole = bytes(body)
                return ollama.answered(whole) if exchange.endpoint.backend == "ollama" else whole
            except HTTP_ERRORS as exc:
                raise exchange.failed(exc, in_answer=True) from exc
            finally:
                await answer.close()
        except KeepwarmError as error:
            exchange.secrets.clean(error)
            raise

    async def _stream(self, exchange: Exchange, reader: ReaderKind) -> AsyncDeltaStream:
        try:
            answer = await self._begun(exchange)
        except KeepwarmError as error:
            exchange.secrets.clean(error)
            raise
        exchange.bounds.limit_bytes = exchange.bounds.bytes + STREAM_BYTES
        exchange.bounds.paused()
        content_type = header(answer.headers, b"content-type")
        if exchange.endpoint.backend == "ollama":
            reader = ollama.OllamaReader
        read = reader(exchange.endpoint, exchange.secrets, content_type)
        return AsyncDeltaStream(exchange, answer, read, self.pools)

    async def _begun(self, exchange: Exchange, *, whatever: bool = False) -> Answer:
        """The headers of a good answer are here, or `whatever` they say.

        A failed connection, or a refusal that says when to come again, is tried once more where that is
        safe. Fields of ours that the endpoint refuses are left out.
        """
        endpoint, left_out = exchange.endpoint, frozenset[str]()
        pool = self.pools.to(endpoint)
        while True:
            try:
                answer = await pool.send(exchange)
            except HTTP_ERRORS as exc:
                pause_s = exchange.pause_s(exc)
                if pause_s is None:
                    raise exchange.failed(exc) from exc
                if pause_s:
                    await pool.pause(pause_s)
                continue
            if whatever:
                return answer
            try:
                foreign = not exchange.route.is_known
                if answer.status != _OK or (foreign and header(answer.headers, _ENCODING)):
                    await self._must_be_plain(exchange, answer)
                break
            except InvalidRequest as error:
                sent = exchange.body if exchange.content_type == JSON_TYPE else None
                names = self._extras.suspects(endpoint, sent or b"{}", error)
                if not names:
                    raise
            except (QueueFull, EndpointUnavailable) as error:
                await pool.pause(_told_to_wait_s(exchange, error))
                continue
            left_out |= names
            exchange.body = without(exchange.body or b"{}", names)
            exchange.bounds.again()
        if not exchange.route.is_known:
            self._extras.answered(endpoint, exchange.body or b"", left_out)
        return answer

    async def _must_be_plain(self, exchange: Exchange, answer: Answer) -> None:
        """Close an answer that is an error or compressed, and raise what it means."""
        try:
            encoding = header(answer.headers, _ENCODING)
            plain = encoding.lower() in {"", "identity"}
            if answer.status == _OK and plain:
                return
            if answer.status == _OK:
                raise exchange.encoded(encoding)
            said = f"(its words are encoded as {exchange.secrets.quote(encoding, 40)})".encode()
            raise exchange.refusal(
                answer.status,
                answer.headers,
                await _first_bytes(exchange, answer) if plain else said,
            )
        except BaseException:
            await answer.close()
            raise


def _is_collected(endpoint: Endpoint, request: ChatRequest) -> bool:
    """Whether a whole answer is asked for as a stream and put together here.

    llama-server looks whether the caller of a whole answer has hung up once nothing has come of any
    request for a second. Beside requests that stream this never is, and it would generate to the end.
    In a stream it leaves out the probabilities of tokens whose text it holds back for a moment.
    """
    if endpoint.backend != "llama.cpp":
        return False
    options = request.options
    most = options.get("max_tokens", options.get("max_completion_tokens"))
    if options.get("logprobs") or (isinstance(most, int) and 0 < most <= SHORT_TOKENS):
        return False
    return _PROBABILITIES.isdisjoint(options.get("extra") or ())


async def _whole(stream: AsyncDeltaStream) -> Completion:
    """The answer that all pieces of a stream make."""
    async with stream:
        return assemble([delta async for delta in stream])


def _told_to_wait_s(exchange: Exchange, error: KeepwarmError) -> float:
    """The seconds of `Retry-After`, once and where they are few; else raises the error."""
    wait_s = error.facts.get("retry_after_s")
    if not isinstance(wait_s, float) or wait_s > RETRY_AFTER_S or exchange.told_to_wait:
        raise error
    exchange.bounds.again()
    if wait_s >= exchange.bounds.left_s():
        raise error
    exchange.told_to_wait = True
    return wait_s


async def _first_bytes(exchange: Exchange, answer: Answer) -> bytes:
    """An endpoint's text of an error, as far as it arrives soon."""
    exchange.bounds.limit_bytes = exchange.bounds.bytes + 2 * ERROR_BYTES
    exchange.bounds.expect("the text of an error", ERROR_BODY_S)
    body = bytearray()
    with contextlib.suppress(KeepwarmError, *HTTP_ERRORS):
        while len(body) < ERROR_BYTES and (chunk := await answer.chunk()) is not None:
            body += chunk
    return bytes(body[:ERROR_BYTES])
