"""What a run is told: plain data, filled from the keeper's answer and the caller's own clock.

Every time is in nanoseconds of the machine's CLOCK_MONOTONIC (`time.monotonic_ns()`), so that the
keeper's times and the caller's lie on one axis. Bytes are ints. A record with a field of another type is
not made: an `InvalidArgument` says which one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from traces.checked import CheckedFields

Storage = Literal["cold", "staged", "warm"]
PREFETCH = "prefetch"
"""The `reason` of a load that no request asked for yet; its first use gets a flow arrow."""


Phase = tuple[str, int, int]
"""A part of a load or an eviction: its name, its begin and its end."""


@dataclass(frozen=True, slots=True)
class LoadSpan(CheckedFields):
    """One load of one model onto one device.

    `load_id` is the keeper's; the same (load_id, device) is written once into a trace however many
    requests report it. `storage` says what was paid: `cold` (read from the disk), `staged` (lay in the
    page cache), `warm` (nothing was read). `reason` is free text, or `PREFETCH`.
    `phases` are its parts, one after another.
    """

    load_id: str
    model: str
    device: str
    start_ns: int
    end_ns: int
    bytes: int
    storage: Storage
    reason: str = ""
    engine: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class EvictSpan(CheckedFields):
    """One model leaving one device. `for_model` needed the bytes. `phases` are its parts."""

    evict_id: str
    model: str
    device: str
    start_ns: int
    end_ns: int
    bytes: int
    reason: str = ""
    for_model: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident(CheckedFields):
    """Something else that happened to a device or a model, at one moment or for a while.

    `kind` is one of `traces.names` (`READ_AHEAD`, `DENIED`, `DIED`, ...). The same kind at the same moment
    is written once into a trace.
    """

    kind: str
    start_ns: int
    end_ns: int
    model: str = ""
    device: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestRecord(CheckedFields):
    """One call of a model, from its arrival in the queue to its last token.

    Args:
        request_id: unique within the run.
        model: the name callers use.
        engine: what runs it (`llama.cpp`, `vllm`, ...).
        slot: the engine's slot; None when it is not known or the engine has none.
        queued_ns: when the caller asked.
        granted_ns: when the lease was granted; None when it never was.
        sent_ns: when the request went to the engine.
        first_token_ns: when the first token arrived; None when it was not observed.
        end_ns: when the last byte arrived, or the failure.
        prompt_tokens: all tokens of the prompt.
        cached_tokens: those of them that the KV cache spared.
        completion_tokens: tokens generated.
        prompt_ms: the engine's own figure for prompt evaluation.
        predicted_ms: the engine's own figure for generation.
        finish_reason: the engine's word for why it stopped.
        error: type name of the failure; None when there was none.
        error_message: its message.
        waited_for_load: `load_id` of the load that this request waited for.
        cold: whether the model was not resident when the request arrived.
        remote: whether the engine is an endpoint that the local budget does not book.
        operation: `chat`, `embeddings`, or the name of another verb.
        prompt: the messages, as text; kept only by a run with `record_content`.
        answer: the answer, as text; kept only by a run with `record_content`.
        waited_for: what it waited for in the queue, in words: `a slot of writer`.
        attributes: more attributes of the span (the decision record's summary, say).
    """

    request_id: str
    model: str
    engine: str
    queued_ns: int
    end_ns: int
    slot: int | None = None
    granted_ns: int | None = None
    sent_ns: int | None = None
    first_token_ns: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    error_message: str = ""
    waited_for_load: str | None = None
    cold: bool = False
    remote: bool = False
    operation: str = "chat"
    prompt: str | None = None
    answer: str | None = None
    waited_for: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CounterSample(CheckedFields):
    """The books of one device at one moment; what is None is not drawn.

    `resident` maps model to the bytes booked for it. A model that an earlier sample named and this one
    does not is drawn at 0 from here on.
    """

    ns: int
    device: str
    resident: Mapping[str, int]
    free_bytes: int
    limit_bytes: int
    reserved_bytes: int | None = None
    protected_bytes: int | None = None
    ceiling_bytes: int | None = None
    measured_free_bytes: int | None = None


class OwnSpan(NamedTuple):
    """A span of the program's own, which has its error in its attributes where it `failed`.

    `owner` is the thread or task that opened it, None where its times were known already.
    """

    name: str
    span_id: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    failed: bool = False
    owner: Hashable = None


Record = LoadSpan | EvictSpan | Incident | RequestRecord | CounterSample | OwnSpan
