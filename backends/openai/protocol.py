"""The OpenAI chat protocol without I/O: requests as bytes, answers as values.

Pure: nothing here opens a connection, reads a clock or the environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from backends.base import Endpoint
from backends.foreign.foreign_json import BYTE_ORDER_MARK, BadJson, parse_json
from backends.kinds import LLAMA
from backends.openai.answers.fields import (
    COUNT,
    MILLISECONDS,
    WrongField,
    a_list,
    a_name,
    a_text,
    an_object,
    figures,
    kind,
    objects,
    parts,
)
from backends.openai.answers.tool_calls import read_calls, readable, whole_calls
from backends.openai.answers.vectors import read_vectors
from backends.openai.chat_messages import checked_messages
from backends.openai.options import FixedOptions, plain_number, wire_options
from budget.errors import EndpointError, InvalidRequest
from traces.text import clean

Message = Mapping[str, Any]
_ROLES: Final = ("assistant", "")
_FINISHES: Final = ("stop", "length", "tool_calls", None)
"""Names that nearly every answer has."""
_USAGE: Final = {"prompt_tokens": COUNT, "completion_tokens": COUNT}
_CACHED: Final = {"cached_tokens": COUNT}
_TIMINGS: Final = {
    "prompt_n": COUNT,
    "cache_n": COUNT,
    "prompt_ms": MILLISECONDS,
    "predicted_n": COUNT,
    "predicted_ms": MILLISECONDS,
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Messages and options of one call, the same for every endpoint."""

    messages: Sequence[Message] | str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counted them; `cached_tokens` of the prompt were not evaluated again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """What llama.cpp measured: tokens evaluated, tokens reused (`cache_n`), milliseconds."""

    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of a streamed answer; everything that a piece does not carry is empty."""

    content: str = ""
    reasoning: str = ""
    role: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[Mapping[str, Any], ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None

    def __str__(self) -> str:
        return self.content

    @property
    def is_token(self) -> bool:
        """Whether it carries something that the model said."""
        return bool(self.content or self.reasoning or self.tool_calls or self.logprobs)

    @property
    def is_empty(self) -> bool:
        """Whether it carries nothing at all."""
        figures = self.usage is not None or self.timings is not None
        return not (self.is_token or self.role or self.finish_reason or figures)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `unparsed`: its content is all that was generated, with the marks of its format."""

    content: str
    finish_reason: str | None
    role: str = "assistant"
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    usage: Usage = Usage()
    timings: Timings | None = None
    unparsed: bool = False


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per text, in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()


def no_chat(model: str) -> InvalidRequest:
    """The error of a chat with a model that embeds."""
    return InvalidRequest(f"{model} does not chat; it embeds.", hint="Call embed() instead.")


def no_embeddings(model: str) -> InvalidRequest:
    """The error of texts for a model that chats."""
    return InvalidRequest(f"{model} does not embed.", hint='Configure it with role = "embedder".')


def chat_body(
    endpoint: Endpoint, request: ChatRequest, *, stream: bool, progress: bool = False
) -> bytes:
    """The body of a chat request for this endpoint.

    With `progress` llama.cpp says in the stream how far it is with the prompt.

    Raises:
        InvalidRequest: a message or an option is not allowed, or the endpoint cannot honour it.
    """
    options = request.options
    heads = options.heads if isinstance(options, FixedOptions) else {}
    head = heads.get(endpoint)
    if head is None:
        if not endpoint.capabilities.chat:
            raise no_chat(endpoint.name)
        head = encode({"model": endpoint.model_id, **wire_options(endpoint, options)})[:-1]
        heads.clear()  # An engine that starts anew is another endpoint.
        heads[endpoint] = head
    messages: Any = request.messages
    messages = (
        [{"role": "user", "content": messages}]
        if isinstance(messages, str)
        else checked_messages(messages, endpoint.backend)
    )
    body: dict[str, Any] = {"messages": messages}
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if progress and endpoint.backend in LLAMA:
            body["return_progress"] = True
    return b"%b,%b" % (head, encode(body)[1:])


def check_texts(verb: str, texts: Sequence[str]) -> None:
    """Refuse what is no list of texts.

    Raises:
        InvalidRequest: it is one text, empty, or has what is no text or an empty one; with its places.
    """
    takes = f"{verb}() takes a non-empty list of non-empty strings"
    if isinstance(texts, str | bytes):
        raise InvalidRequest(
            f"{takes}, not a single one.", hint="Write [ ] around it.", positions=[]
        )
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text]
    if bad or not texts:
        found = f"wrong at: {bad}" if bad else "the list is empty"
        raise InvalidRequest(f"{takes} ({found}).", positions=list(bad))


def embed_body(endpoint: Endpoint, texts: Sequence[str]) -> bytes:
    """The body of an embeddings request.

    Raises:
        InvalidRequest: no texts, one that is empty or not a string, or an engine that cannot embed.
    """
    if not endpoint.capabilities.embeddings:
        raise no_embeddings(endpoint.name)
    check_texts("embed", texts)
    return encode({"model": endpoint.model_id, "input": list(texts), "encoding_format": "float"})


def encode(body: Mapping[str, Any]) -> bytes:
    """A body as JSON.

    Raises:
        InvalidRequest: it holds what JSON cannot.
    """
    try:
        return _ENCODER.encode(body).encode()
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply for JSON.") from None
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(f"the request cannot be written as JSON: {exc}.") from exc


def _plain(value: Any) -> Any:
    """A number of another library as Python's; what JSON cannot hold is refused."""
    plain = plain_number(value)
    if plain is value:
        raise TypeError(f"{type(value).__name__} is no value of JSON")
    return plain


# Made once: json.dumps makes a new one a call when it is given options.
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain
)


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object of an answer.

    Raises:
        EndpointError: it is not one; the text itself is not quoted.
    """
    try:
        value = parse_json(raw.removeprefix(BYTE_ORDER_MARK))
    except BadJson as exc:
        problem = str(exc)
    else:
        if isinstance(value, dict):
            return value
        problem = f"{kind(value)} where an object is due"
    # Raised out here, so that the parser's error, which holds the whole text, is not kept with it.
    raise EndpointError(
        f"the endpoint sent something that is not JSON of this protocol: {problem}."
    )


def parse_completion(answer: Mapping[str, Any]) -> Completion:
    """A full (not streamed) answer.

    Raises:
        EndpointError: it has not the protocol's shape.
    """
    try:
        said = _said(answer, "message")
    except WrongField as exc:
        raise _bad_shape(exc) from None
    content = said.content
    return Completion(
        content=content if content.isascii() else clean(content),
        finish_reason=said.finish_reason,
        role=said.role or "assistant",
        reasoning=clean(said.reasoning) if said.reasoning else "",
        tool_calls=tuple(map(readable, said.tool_calls)) if said.tool_calls else (),
        logprobs=said.logprobs,
        usage=said.usage or Usage(),
        timings=said.timings,
    )


def parse_chunk(chunk: Mapping[str, Any]) -> Delta:
    """One chunk of a stream.

    Raises:
        EndpointError: it has not the protocol's shape.
    """
    try:
        return _said(chunk, "delta")
    except WrongField as exc:
        raise _bad_shape(exc) from None


def comes_in_events(answer: bytes) -> bool:
    """Whether the body of an answer is a stream of events, and no JSON."""
    begins = answer[:64].removeprefix(BYTE_ORDER_MARK).lstrip()
    return begins.startswith((b"data:", b"event:", b"id:", b": ", b":\n"))


def parse_embeddings(answer: Mapping[str, Any], count: int) -> Embeddings:
    """The vectors of an embeddings answer: by their `index`, in the order sent where there is none.

    Raises:
        EndpointError: it has not the protocol's shape, or not one vector per text.
    """
    try:
        if "data" not in answer:
            raise WrongField("data", None, "a list")
        vectors = read_vectors(objects(answer["data"], "data"))
        usage = read_figures(answer)[0] or Usage()
    except WrongField as exc:
        raise _bad_shape(exc) from None
    if len(vectors) != count:
        raise EndpointError(f"the endpoint sent {len(vectors)} vectors for {count} texts.")
    return Embeddings(vectors, usage)


def assemble(deltas: Iterable[Delta]) -> Completion:
    """The whole answer that a stream's pieces make."""
    content: list[str] = []
    reasoning: list[str] = []
    logprobs: list[Mapping[str, Any]] = []
    calls: list[Mapping[str, Any]] = []
    last = Completion(content="", finish_reason=None)
    role, finish, usage, timings = last.role, last.finish_reason, last.usage, last.timings
    for delta in deltas:
        content.append(delta.content)
        reasoning.append(delta.reasoning)
        logprobs.extend(delta.logprobs)
        calls.extend(delta.tool_calls)
        role = delta.role or role
        finish = delta.finish_reason or finish
        usage = delta.usage or usage
        timings = delta.timings or timings
    return Completion(
        content="".join(content),
        finish_reason=finish,
        role=role,
        reasoning="".join(reasoning),
        tool_calls=whole_calls(calls),
        logprobs=tuple(logprobs),
        usage=usage,
        timings=timings,
    )


def _said(answer: Mapping[str, Any], of: Literal["message", "delta"]) -> Delta:
    """What the first choice says, whole or a piece; its texts may end in half a character.

    A piece may have no choice, or one that says nothing: it carries figures then.
    """
    choices = answer.get("choices")
    if not choices or not isinstance(choices, list):
        choices = a_list(choices, "choices") or [{}]
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise WrongField("an item of choices", choice, "an object")
    message, is_whole = choice.get(of), of == "message"
    if not isinstance(message, Mapping) and not is_whole and "message" in choice:
        # An answer that came whole, though a stream was asked for.
        message, is_whole = choice["message"], True
    if not isinstance(message, Mapping):
        if message is not None or (of == "message" and "text" not in choice):
            raise WrongField(of, message, "an object")
        # The pieces of a plain completion have their text in the choice.
        message = {"content": choice.get("text")}
    content, reasoning = message.get("content"), ""
    if not isinstance(content, str):
        content, reasoning = parts(content, "content")
    if not content and (refusal := message.get("refusal")):
        content = a_text(refusal, "refusal")
    if thought := message.get("reasoning_content") or message.get("reasoning"):
        reasoning = a_text(thought, "reasoning_content")
    calls, logprobs = message.get("tool_calls"), choice.get("logprobs")
    if not calls and (call := message.get("function_call")):
        calls = [{"index": 0, "type": "function", "function": call}]
    if logprobs:
        logprobs = objects(an_object(logprobs, "logprobs").get("content"), "logprobs")
    read = read_calls(calls) if calls else ()
    if is_whole and of == "delta":
        # Pieces belong together by their index, and whole calls need not have any.
        read = tuple({**call, "index": number} for number, call in enumerate(read))
    role, finish = message.get("role", ""), choice.get("finish_reason")
    usage, timings = read_figures(answer)
    return Delta(
        content=content,
        reasoning=reasoning,
        role=role if role in _ROLES else a_name(role, "role"),
        tool_calls=read,
        finish_reason=finish if finish in _FINISHES else a_name(finish, "finish_reason") or None,
        logprobs=logprobs or (),
        usage=usage,
        timings=timings,
    )


def read_figures(answer: Mapping[str, Any]) -> tuple[Usage | None, Timings | None]:
    """The tokens in an answer's `usage`, and llama.cpp's timings; None where there are none."""
    usage, timings = answer.get("usage"), answer.get("timings")
    counted = measured = None
    if isinstance(usage, Mapping) and usage:
        details = usage.get("prompt_tokens_details")
        cached = figures(details, _CACHED) if isinstance(details, Mapping) else {}
        counted = Usage(**figures(usage, _USAGE), **cached)
    if isinstance(timings, Mapping) and timings:
        measured = Timings(**figures(timings, _TIMINGS))
    return counted, measured


def _bad_shape(problem: WrongField) -> EndpointError:
    return EndpointError(
        f"the endpoint's answer has not the shape of the OpenAI protocol: {problem}."
    )
