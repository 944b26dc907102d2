"""The messages of clients to the keeper: a pydantic model per op, checked before the keeper acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from backends.foreign.foreign_json import BadJson, parse_json
from budget.errors import ConfigError, InvalidRequest
from shim.wire.json_lines import VERSION

INTEGER_LIMIT: Final = 2**53
"""Integers up to here are the same number in every JSON reader."""
LONGEST_S: Final = 365.0 * 24 * 3600
MOST_MODELS: Final = 4096
MOST_INSIDE: Final = 64
RELOAD_LIMIT_BYTES: Final = 1 << 20
"""No configuration file may be larger."""
_QUOTED: Final = 80
_LONGEST_PATH: Final = 4096
_HALF: Final = b"\\ud"

Number = Annotated[int, Field(ge=-INTEGER_LIMIT, le=INTEGER_LIMIT)]
Count = Annotated[int, Field(ge=0, le=INTEGER_LIMIT)]
Name = Annotated[str, Field(min_length=1, max_length=512)]


def _file_name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATH:
        raise ValueError(f"should be a text of 1 to {_LONGEST_PATH} characters")
    return value


FileName = Annotated[str, PlainValidator(_file_name)]
"""May have half surrogates, as a file name that is not UTF-8, which pydantic's own text has not."""


class Ask(BaseModel):
    """An op and the id of its answer; a message without an id is not answered."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: Count | None = None


class Hello(Ask):
    """The first message of a client: its version of the protocol."""

    # A client of another version may send more fields; its error has to be the one about versions.
    model_config = ConfigDict(extra="ignore")

    op: Literal["hello"]
    version: Number


class LeaseOp(Ask):
    """Make a model resident, and lease it to the client, keep it loaded, or pin it.

    `inside`: leases of the same caller, which it does not give back before it has an answer.
    `overridden`: the caller uses an evaluator although it is under the floor.
    """

    op: Literal["lease"]
    model: Name
    want: Literal["lease", "load", "pin"] = "lease"
    priority: Number | None = None
    deadline_s: Annotated[float, Field(ge=0.0, le=LONGEST_S)] | None = None
    plan: Name | None = None
    preemptible: bool = False
    persist: bool = False
    overridden: bool = False
    inside: Annotated[list[Name], Field(max_length=MOST_INSIDE)] = []


class End(Ask):
    """End a lease.

    `spent`: the engine's own figures of the request, when its first token came (`first_ms`), its
    `operation` where that is not a chat, and the type of its `error`.
    """

    op: Literal["end"]
    lease: Name
    spent: Annotated[dict[Name, float | int | Name | None], Field(max_length=64)] | None = None


class Yielded(Ask):
    """Give a lease back in the middle of an answer, after so many tokens of prompt and answer."""

    op: Literal["yielded"]
    lease: Name
    prompt_tokens: Count
    tokens: Count


class Pong(Ask):
    """The answer to `ping`: the client that holds a lease is alive."""

    op: Literal["pong"]
    lease: Name


class Diagnose(Ask):
    """Ask how an engine ended, for the request of a lease; one that never reached it names none."""

    op: Literal["diagnose"]
    engine: Name
    generation: Number
    lease: Name | None = None


class Hint(Ask):
    """Release a model, unload it once it is idle, or unpin it."""

    op: Literal["hint"]
    kind: Literal["release", "unload", "unpin"]
    model: Name


class DeclareOp(Ask):
    """Declare the order of coming uses, for this client or for the requests that name the declaration.

    `overridden`: evaluators that the caller uses although they are under the floor. `any_order`: the work
    goes on side by side, so that a use which is passed over comes later.
    """

    op: Literal["plan"]
    models: Annotated[list[Name], Field(max_length=MOST_MODELS)] = []
    overridden: Annotated[list[Name], Field(max_length=MOST_MODELS)] = []
    plan: Name | None = None
    any_order: bool = False


class Status(Ask):
    """Ask for everything that `keepwarm ps` shows."""

    op: Literal["status"]


class WhatIfOp(Ask):
    """Ask what would be evicted for models, and whether they fit together."""

    op: Literal["what_if"]
    models: Annotated[list[Name], Field(min_length=1, max_length=MOST_MODELS)]


class HistoryOf(Ask):
    """Ask for loads, evictions and books of a span of time, in nanoseconds of the monotonic clock."""

    op: Literal["history"]
    since_ns: Annotated[int, Field(ge=0, lt=2**63)]
    until_ns: Annotated[int, Field(ge=0, lt=2**63)]


class Capture(Ask):
    """Ask for the requests of the last seconds, with the history of that time."""

    op: Literal["capture"]
    last_s: Annotated[float, Field(gt=0.0, le=LONGEST_S)]


class Log(Ask):
    """Ask for the log of a model's engine, after the lines of a generation that were seen before."""

    op: Literal["log"]
    model: Name
    generation: Number | None = None
    seen: Count = 0


class Kv(Ask):
    """Ask which KV state is kept on disk."""

    op: Literal["kv"]


class KvClear(Ask):
    """Delete the kept KV state of one model, or of all."""

    op: Literal["kv_clear"]
    model: Name | None = None


class Reload(Ask):
    """Take over another configuration."""

    op: Literal["reload"]
    config: dict[str, Any]
    label: FileName = "the client's"
    file: FileName | None = None


class TakeIn(Ask):
    """Hand over models of the client's own configuration, so that it can ask for them."""

    op: Literal["take_in"]
    entries: dict[str, Any]
    read_at: Annotated[float, Field(ge=0.0)]
    label: FileName = "the client's"
    file: FileName | None = None


class StayOp(Ask):
    """Do not end for lack of clients, because this keeper was started on purpose."""

    op: Literal["stay"]


class Stop(Ask):
    """End the keeper once this answer is on its way."""

    op: Literal["stop"]


Asked = (
    Hello
    | LeaseOp
    | End
    | Yielded
    | Pong
    | Diagnose
    | Hint
    | DeclareOp
    | Status
    | WhatIfOp
    | HistoryOf
    | Capture
    | Log
    | Kv
    | KvClear
    | Reload
    | TakeIn
    | StayOp
    | Stop
)
UNANSWERED: Final = frozenset((End, Pong))
_FULLY_CHECKED: Final = frozenset((LeaseOp, End, Pong))
"""The ops of every call: their models say all that is to be checked."""
_OPS: Final = TypeAdapter[Asked](Annotated[Asked, Field(discriminator="op")]).validator


def read(line: bytes) -> Asked:
    """The op of one line.

    Raises:
        ConfigError: the client speaks another version of the protocol.
        InvalidRequest: the line is not a message, or a field has a value that is not allowed.
    """
    try:
        # The quick reader takes no half of a surrogate, as a file name that is not UTF-8 has it.
        half = _HALF in line
        asked: Asked = _OPS.validate_python(_plain(line)) if half else _OPS.validate_json(line)
    except ValidationError as error:
        raise _refusal(line, error.errors(include_url=False, include_context=False)) from None
    if type(asked) in _FULLY_CHECKED:
        return asked
    if isinstance(asked, Hello) and asked.version != VERSION:
        raise ConfigError(
            f"The keeper speaks version {VERSION} of its protocol, the client {asked.version}.",
            hint="Restart it: `keepwarm keeper stop`.",
        )
    if isinstance(asked, Reload | TakeIn):
        # No model describes the configuration here, so its size, numbers and depth are checked.
        if len(line) > RELOAD_LIMIT_BYTES:
            raise InvalidRequest(
                f"The configuration has {len(line)} bytes; {RELOAD_LIMIT_BYTES} are allowed."
            )
        _plain(line)
    return asked


def number_of(line: bytes) -> int | None:
    """The id for the answer to a line; None where the line has no valid id."""
    try:
        message = parse_json(line)
    except BadJson:
        return None
    number = message.get("id") if isinstance(message, dict) else None
    fits = type(number) is int and 0 <= number <= INTEGER_LIMIT
    return number if fits else None


def _plain(line: bytes) -> Any:
    try:
        return parse_json(line)
    except BadJson as error:
        raise InvalidRequest(f"The keeper cannot take this message: {error}.") from None


def _refusal(line: bytes, problems: Sequence[ErrorDetails]) -> InvalidRequest:
    if not problems[0]["loc"] and not problems[0]["type"].startswith("union_tag"):
        return InvalidRequest(
            f"The keeper was sent what is no message: {_quoted(line[:_QUOTED])}.",
            hint="It takes one JSON object a line.",
        )
    if problems[0]["type"].startswith("union_tag"):
        found = _plain(line)
        op = found.get("op") if isinstance(found, dict) else None
        return InvalidRequest(
            f"The keeper knows no op {_quoted(op)}.", hint=f"It knows {', '.join(sorted(OPS))}."
        )
    said = []
    for problem in problems[:5]:
        where = ".".join(str(part) for part in problem["loc"])
        said.append(f"{where}: {problem['msg']} (found {_quoted(problem['input'])})")
    return InvalidRequest(f"The keeper cannot take this message: {'; '.join(said)}.")


def _quoted(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."


OPS: Final = frozenset(
    str(kind.model_fields["op"].annotation.__args__[0]) for kind in Asked.__args__
)
