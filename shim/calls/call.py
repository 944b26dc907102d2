"""One call, from its options to its reply and its record on the trace. Does no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from backends.base import Endpoint
from backends.openai.connections.bounds import RETRY_AFTER_S, Limits, Timeouts
from backends.openai.exchange import secrets_of
from backends.openai.masking import NO_SECRETS
from backends.openai.options import FixedOptions, template_warnings
from backends.openai.protocol import ChatRequest, Completion, Embeddings, Usage
from backends.openai.requests.relaxed_schemas import SCHEMAS, relaxed_in
from budget.errors import InternalError, KeepwarmError
from shim.calls.routing.served_by import served
from shim.config import Config
from shim.config.schema.endpoint_values import EndpointEntry
from shim.replies import NO_USAGE, CallReply, EmbeddingReply, PastCall, Reply, Residency
from shim.replies import Answer as Answer
from shim.wire.keeper_connection import KeeperConnection
from traces import RequestRecord, RunTrace, current_run, names

Messages = Sequence[Mapping[str, Any]] | str
_Made = TypeVar("_Made")
_MODEL = itemgetter("model")
_SPENT = ("prompt_n", "prompt_ms", "cache_n", "predicted_n", "predicted_ms")
_FIGURES = attrgetter(*_SPENT)


@dataclass(slots=True)
class LeaseGrant:
    """A lease as the client holds it; `lease` is None at a remote endpoint, which needs none."""

    endpoint: Endpoint
    lease: str | None = None
    engine: str = ""
    generation: int = 0
    slot: int | None = None
    cold: bool = False
    granted_ns: int = 0
    load: Mapping[str, Any] | None = None
    evictions: Sequence[Mapping[str, Any]] = ()
    decision: Mapping[str, Any] | None = None
    waited_for: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """What all calls of a model with the same options have in common; the fields are those of `Call`.

    `texts_alone`: a chat may have no images. `low`: a chat of texts is one in the background.
    """

    config: Config
    options: FixedOptions
    wants: dict[str, Any]
    timeouts: Timeouts | None
    own_timeouts: Mapping[str, Any]
    remote: bool
    resumable: bool
    texts_alone: bool
    low: bool


@dataclass(slots=True)
class Call:
    """The state of a call while it runs. Times are monotonic nanoseconds."""

    model: str
    request: ChatRequest
    wants: dict[str, Any]
    """The fields of the op that asks for its lease."""
    limits: Limits
    remote: bool
    operation: str = "chat"
    in_background: bool = False
    """Whether its priority is below 0. Such a call is streamed internally, to be interruptible."""
    resumable: bool = False
    """Whether its engine could go on with an answer of texts, were it interrupted in the middle."""
    preemptible: bool = False
    """Whether its answer can be interrupted and go on, which only a stream can."""
    whole: bool = False
    """Whether the caller gets the answer at its end, though it is streamed internally."""
    ended_by: KeepwarmError | None = None
    """The end of an engine after which the request was sent once more; None where it was sent once."""
    pause_s: float = 0.0
    """The seconds to wait before its next lease."""
    runs_on: bool = False
    """Whether an interrupt was asked for and was impossible, so that it runs to its end."""
    started_ns: int = field(default_factory=time.monotonic_ns)
    sent_ns: int = 0
    first_ns: int | None = None
    end_ns: int = 0
    grant: LeaseGrant | None = None
    connection: KeeperConnection | None = None
    """The connection that holds its lease; None at a remote endpoint, which needs none."""
    resumed: int = 0
    retried: int = 0
    """How often the request was sent anew, because its engine ended: at most once."""
    serving: str = ""
    """The model that serves it: its own, or the fallback that took over."""
    route: tuple[Sequence[EndpointEntry], int] | None = None
    """The endpoints of that model, and the place among them that has the request now."""
    asked: list[str] = field(default_factory=list)
    """The models that had it before the one that serves it."""
    own_timeouts: Mapping[str, Any] = field(default_factory=dict)
    """The time-outs that were given with the call; they hold for a fallback, too."""
    passed: list[int] = field(default_factory=list)
    """The places that failed, or that were tried in vain."""
    moved_from: KeepwarmError | None = None
    """The last error after which another endpoint or model was asked; None where none was."""
    run: RunTrace | None = field(default_factory=current_run)
    """The run that is traced where the call is made."""

    @property
    def held(self) -> LeaseGrant:
        """The lease that the call has.

        Raises:
            InternalError: it has none.
        """
        if self.grant is None:
            raise InternalError(f"the call of {self.model} has no lease")
        return self.grant

    def granted(self, answer: Mapping[str, Any]) -> Endpoint:
        """Note the lease of a keeper's answer and the time of the request; returns where it goes.

        A second lease is for the rest of an answer.
        """
        assert self.connection is not None
        known, engine, granted_ns = (
            self.connection.endpoints,
            answer["engine"],
            answer["granted_ns"],
        )
        if "endpoint" in answer:
            known[engine] = Endpoint.from_wire(answer["endpoint"])
        endpoint = known[engine]
        if self.serving and endpoint.model_id != self.serving:
            endpoint = replace(endpoint, called=self.serving)
        if endpoint.backend == "llama-cpp-python":
            self.preemptible = False
        if self.grant is not None and self.sent_ns:
            # A call with several leases has one begin on the trace and in its figures.
            granted_ns = self.grant.granted_ns
            self.resumed += 1
        else:
            self.sent_ns = time.monotonic_ns()
        self.grant = LeaseGrant(
            endpoint,
            answer["lease"],
            engine,
            answer["generation"],
            answer["slot"],
            answer["cold"],
            granted_ns,
            answer.get("load"),
            answer.get("evictions", ()),
            answer.get("decision"),
            answer.get("waited_for", ""),
        )
        return endpoint

    def routed(self, endpoint: Endpoint) -> Endpoint:
        """Note an endpoint that needs no lease, and the time of the request; returns the endpoint."""
        self.sent_ns = time.monotonic_ns()
        self.grant = LeaseGrant(endpoint, granted_ns=self.sent_ns)
        return endpoint

    def begins_anew(self, failure: KeepwarmError) -> bool:
        """Whether the request is sent once more, because its engine ended. It is noted in `ended_by`.

        It is where its caller has got nothing yet, there is time left, and the keeper does not suspect
        this request of having ended the engine. Before, it waits while the engine's requests are refused.
        """
        if self.ended_by is not None or failure.facts.get("suspected", True) is True:
            return False
        if not self.can_begin_anew or not self._can_wait(failure.retry_after_s or 0.0):
            return False
        self.pause_s = failure.retry_after_s or 0.0
        self.ended_by, self.retried = failure, 1
        self._from_the_start()
        return True

    def _can_wait(self, seconds: float) -> bool:
        deadline = self.limits.get("deadline")
        in_time = deadline is None or time.monotonic() + seconds < deadline
        return seconds <= RETRY_AFTER_S and in_time

    @property
    def can_begin_anew(self) -> bool:
        """Whether its caller has got nothing yet, and there is time left."""
        if self.first_ns is not None and not self.whole:
            return False
        deadline = self.limits.get("deadline")
        return deadline is None or time.monotonic() < deadline

    def moves(self, failure: KeepwarmError) -> None:
        """Note that the request is sent elsewhere because of a failure."""
        self.moved_from = failure
        self._from_the_start()

    def _from_the_start(self) -> None:
        self.first_ns, self.sent_ns = None, 0
        self.resumed, self.runs_on = 0, False

    @property
    def served_by(self) -> str:
        """The model that served it, with its address where it is remote; empty before a lease."""
        grant = self.grant
        if grant is None:
            return ""
        return self.serving if grant.lease else served(self.serving, grant.endpoint)

    def residency(self) -> Residency:
        """What the call waited for until its model was resident."""
        grant = self.grant
        if grant is None:
            return Residency()
        load = grant.load
        return Residency(
            cold=grant.cold,
            waited_s=max(0, grant.granted_ns - self.started_ns) / 1e9,
            load_s=max(0, load["end_ns"] - load["start_ns"]) / 1e9 if load else 0.0,
            storage=load["storage"] if load else "warm",
            evicted=tuple(map(_MODEL, grant.evictions)),
            slot=grant.slot,
            engine=grant.engine,
        )

    def reply(self, answer: Completion) -> Reply:
        """The reply of a finished call."""
        self.end_ns = time.monotonic_ns()
        grant, options, first_ns = self.grant or self.held, self.request.options, self.first_ns
        endpoint = grant.endpoint
        can = endpoint.capabilities
        # Asked only where there may be something to say.
        warns = answer.unparsed or not can.own_template or "tools" in options
        relaxes = endpoint.backend == "llama.cpp" and not options.keys().isdisjoint(SCHEMAS)
        if first_ns is None and answer.timings is not None:
            first_ns = self.sent_ns + int(answer.timings.prompt_ms * 1e6)
        return Reply(
            model=self.model,
            content=answer.content,
            role=answer.role,
            finish_reason=answer.finish_reason,
            reasoning=answer.reasoning,
            tool_calls=answer.tool_calls,
            logprobs=answer.logprobs,
            usage=answer.usage,
            timings=answer.timings,
            residency=self.residency(),
            ttft_s=None if first_ns is None else (first_ns - self.started_ns) / 1e9,
            total_s=(self.end_ns - self.started_ns) / 1e9,
            resumed=self.resumed,
            retried=self.retried,
            served_by=self.serving if grant.lease else self.served_by,
            relaxed=relaxed_in(options) if relaxes else (),
            warnings=template_warnings(endpoint, options, unparsed=answer.unparsed)
            if warns
            else (),
        )

    def embedding_reply(self, answer: Embeddings) -> EmbeddingReply:
        """The reply of a finished embedding call."""
        return self.other_reply(EmbeddingReply, vectors=answer.vectors, usage=answer.usage)

    def call_reply(self, value: Any) -> CallReply:
        """The reply of a finished call of a Python model."""
        return self.other_reply(CallReply, value=value)

    def other_reply(self, make: Callable[..., _Made], **answer: Any) -> _Made:
        """The reply of a finished call that is no chat, with the fields of its answer."""
        self.end_ns = time.monotonic_ns()
        return make(
            model=self.model,
            residency=self.residency(),
            total_s=(self.end_ns - self.started_ns) / 1e9,
            retried=self.retried,
            served_by=self.served_by,
            **answer,
        )

    def spent(self, answer: Answer | None, error: BaseException | None) -> dict[str, Any]:
        """What the keeper is told at the end of the lease: the engine's own figures, where it has any."""
        timings = answer.timings if isinstance(answer, Reply) else None
        told: dict[str, Any] = {}
        if timings is not None:
            told = dict(zip(_SPENT, _FIGURES(timings), strict=True))
        elif answer is not None and not isinstance(answer, CallReply):
            usage = answer.usage
            told = {
                "prompt_n": usage.prompt_tokens - usage.cached_tokens,
                "cache_n": usage.cached_tokens,
                "predicted_n": usage.completion_tokens,
            }
        if self.first_ns is not None:
            told["first_ms"] = (self.first_ns - self.started_ns) / 1e6
        if self.operation != "chat":
            told["operation"] = self.operation
        if error is not None:
            told["error"] = type(error).__name__
        return told

    def past(self, answer: Answer | None, error: BaseException | None) -> PastCall:
        """The call as `Shim.history` tells it, without its texts."""
        now_ns, reply = time.monotonic_ns(), answer if isinstance(answer, Reply) else None
        return PastCall(
            self.model,
            self.operation,
            time.time() - (now_ns - self.started_ns) / 1e9,
            ((self.end_ns or now_ns) - self.started_ns) / 1e9,
            reply.ttft_s if reply else None,
            answer.usage if answer else NO_USAGE,
            answer.residency if answer else self.residency(),
            reply.finish_reason if reply else None,
            None if error is None else f"{type(error).__name__}: {error}",
        )

    def record(
        self,
        request_id: str,
        said: Reply | None,
        usage: Usage | None,
        error: BaseException | None,
    ) -> RequestRecord:
        """The call's record on the trace."""
        grant, timings = self.grant, said.timings if said else None
        # An answer of an endpoint that got a key may contain that key.
        has_key = grant is not None and (self.remote or grant.endpoint.key_file is not None)
        secrets = secrets_of(grant.endpoint) if grant and has_key else NO_SECRETS
        return RequestRecord(
            request_id=request_id,
            model=self.model,
            engine=grant.endpoint.backend if grant else "",
            queued_ns=self.started_ns,
            end_ns=self.end_ns or time.monotonic_ns(),
            slot=grant.slot if grant else None,
            granted_ns=grant.granted_ns if grant else None,
            sent_ns=self.sent_ns or None,
            first_token_ns=self.first_ns,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            prompt_ms=timings.prompt_ms if timings else None,
            predicted_ms=timings.predicted_ms if timings else None,
            finish_reason=secrets.mask(said.finish_reason or "") or None if said else None,
            error=type(error).__name__ if error else None,
            error_message=str(error) if error else "",
            waited_for_load=grant.load["load_id"] if grant and grant.load else None,
            cold=grant.cold if grant else False,
            remote=self.remote,
            operation=self.operation,
            prompt=str(self.request.messages) if self.run and self.run.record_content else None,
            answer=secrets.mask(said.content) if said else None,
            waited_for=_waited_for(grant, error),
            attributes=self._trace_attributes(),
        )

    def _trace_attributes(self) -> dict[str, Any]:
        """What the trace says of the call beside its record."""
        grant = self.grant
        attributes: dict[str, Any] = {}
        if grant is not None and grant.lease is not None:
            attributes[names.SERVED_BY_LOAD] = f"{grant.engine}/{grant.generation}"
        if grant is not None and grant.decision is not None:
            attributes[names.DECISION] = grant.decision["reason"]
        if grant is not None and grant.evictions:
            attributes[names.EVICTED] = " ".join(row["evict_id"] for row in grant.evictions)
        if self.resumed:
            attributes["keepwarm.resumed"] = self.resumed
        if self.route is not None or self.moved_from is not None:
            attributes[names.SERVED_BY] = self.served_by
        if self.moved_from is not None:
            attributes[names.MOVED_AFTER] = str(self.moved_from)
        if self.ended_by is not None:
            attributes["keepwarm.retried_after"] = str(self.ended_by)
        return attributes


def _waited_for(grant: LeaseGrant | None, error: BaseException | None) -> str:
    """What a call waited for in the keeper's queue, in words, whether or not it got its lease."""
    if grant is not None:
        return grant.waited_for
    said = error.facts.get("waited_for") if isinstance(error, KeepwarmError) else None
    return said if isinstance(said, str) else ""
