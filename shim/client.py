"""`Shim`: chat with models by name, and control which of them stay, load or leave."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from backends.flows import run_blocking
from backends.openai.protocol import Delta
from budget.errors import InvalidRequest
from shim.calls.call import Call, Messages
from shim.calls.calls import Calls
from shim.calls.declaring import Plan, check_names, no_name
from shim.calls.lifetime.forgotten_shims import Owner
from shim.calls.options.chat_options import CallOptions, ChatOptions
from shim.calls.options.own_options import OWN_OPTIONS
from shim.calls.own_run import configured_run
from shim.calls.session import Session
from shim.calls.streaming.held_stream import StreamStart
from shim.calls.streaming.read_streams import leases_here
from shim.calls.streaming.result_stream import AsyncResultStream, ResultStream
from shim.calls.verbs_beside_chat import VerbsBesideChat
from shim.config import Config
from shim.model_info import ModelInfo
from shim.replies import CallReply, EmbeddingReply, PastCall, Reply
from shim.streams import AsyncReplyStream, ReplyStream
from traces import RunTrace

if TYPE_CHECKING:
    from shim.calls.http_clients import HttpClient, HttpStart
    from shim.keeper.engines.running_engine import EngineFactory


class Shim(VerbsBesideChat):
    """The client for the models of one configuration. Thread-safe, usable from asyncio, safe after fork.

    The keeper is found, or started in the background, when it is first needed. A configuration made
    in code gets an inline keeper, which ends with this object: with `close`, when nothing refers to the
    object or a stream of it any more, or with the program.

    Args:
        config: a `Config`, the path of a file, a mapping shaped like one, or None to search
            (`$KEEPWARM_CONFIG`, `./keepwarm.toml`, the user's configuration folder).
        inline: run the keeper inside this process (True), or in the background (False).
        runtime: the background keeper's folder; by default that of the user.
        factory: makes an inline keeper's engines; for tests. It then locks no device.
        share: let an inline keeper book devices that another keeper books, too. By default that is a
            `ConfigError`, because neither keeper knows the bytes of the other's engines.

    Raises:
        ConfigError: the configuration is not valid.
    """

    def __init__(
        self,
        config: Config | str | Path | Mapping[str, Any] | None = None,
        *,
        inline: bool | None = None,
        runtime: Path | None = None,
        factory: EngineFactory | None = None,
        share: bool = False,
    ) -> None:
        session = Session(config, inline=inline, runtime=runtime, factory=factory, share=share)
        self._session = session
        owner = Owner(session)
        lines, transport = session.connections.flows, session.sync_transport.flows
        self._sync = Calls(session, lines, transport, session.workers, owner)
        connections, aside = session.async_connections, session.async_workers
        self._async = Calls(session, connections, session.async_transport, aside, owner)
        self._declared = Plan(session)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._session.config

    @property
    def runtime(self) -> Path:
        """The keeper's folder."""
        return self._session.runtime

    # Calls

    def chat(self, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Reply:
        """One whole answer.

        Args:
            model: a name of the configuration.
            messages: OpenAI chat messages, or a string for one user message.
            options: those of `ChatOptions`, explained in `docs/options.md`: sampling and format options
                of the engine, and `priority` and `deadline_s` of keepwarm: seconds in which the whole call
                has to end, waiting included; after that it is a `DeadlineExceeded`. An answer of a priority
                below 0 (work in the background) may be interrupted for a request of higher priority,
                and goes on after it.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, which sorts errors by the party at fault.
        """
        call, calls = self._session.call(model, messages, options), self._sync
        return run_blocking(calls.answer(call, calls.transport.chat, call.request, call.reply))

    def stream(self, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ReplyStream:
        """The answer piece by piece; `reply` of the stream is the whole one at the end.

        Closing an unfinished stream stops generation and gives the lease back.

        Raises:
            KeepwarmError: as `chat`, here or while iterating.
        """
        call = self._session.call(model, messages, options)
        return ReplyStream(run_blocking(self._sync.stream(call)))

    def embed(
        self, model: str, texts: Sequence[str] | str, **options: Unpack[CallOptions]
    ) -> EmbeddingReply:
        """One vector per text. Options: `priority`, `deadline_s`.

        Raises:
            KeepwarmError: as `chat`.
        """
        (call, batch), calls = self._embedding(model, texts, options), self._sync
        return run_blocking(calls.answer(call, calls.transport.embed, batch, call.embedding_reply))

    async def achat(self, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Reply:
        """As `chat`, awaited; cancelling it stops generation and gives the lease back."""
        call, calls = self._session.call(model, messages, options), self._async
        return await calls.answer(call, calls.transport.chat, call.request, call.reply)

    def astream(
        self, model: str, messages: Messages, **options: Unpack[ChatOptions]
    ) -> StreamStart[AsyncReplyStream, Delta]:
        """As `stream`: `async with shim.astream(...) as stream`, `async for piece in shim.astream(...)`.

        `await shim.astream(...)` is the stream as well; close it with `aclose`.
        """
        return StreamStart(self._begin(model, messages, options))

    async def _begin(
        self, model: str, messages: Messages, options: Mapping[str, Any]
    ) -> AsyncReplyStream:
        return await self._async.stream(self._session.call(model, messages, options))

    async def aembed(
        self, model: str, texts: Sequence[str] | str, **options: Unpack[CallOptions]
    ) -> EmbeddingReply:
        """As `embed`, awaited."""
        (call, batch), calls = self._embedding(model, texts, options), self._async
        return await calls.answer(call, calls.transport.embed, batch, call.embedding_reply)

    def _embedding(
        self, model: str, texts: Sequence[str] | str, options: Mapping[str, Any]
    ) -> tuple[Call, list[str]]:
        if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
            raise InvalidRequest(
                f"texts is {type(texts).__name__}; allowed are a string or a list of strings."
            )
        batch = [texts] if isinstance(texts, str) else list(texts)
        return self._session.call(model, [], options, "embeddings"), batch

    # Python models

    def call(self, model: str, /, **payload: Any) -> CallReply:
        """The result of a Python model (`backend = "python"`): `value` of the reply.

        Args:
            model: a name of the configuration.
            payload: what its `__call__` gets: JSON values, bytes and numpy arrays. `CallOptions`
                (`priority`, `deadline_s`, ...) are keepwarm's and are not passed on.

        Raises:
            WorkerError: the model's code raised; the model stays resident.
            KeepwarmError: as `chat`.
        """
        (call, rest), calls = self._calling(model, payload), self._sync
        return run_blocking(calls.answer(call, calls.workers.call, rest, call.call_reply))

    def stream_call(self, model: str, /, **payload: Any) -> ResultStream:
        """The items of a Python model that is a generator, as they come; closing it early ends that.

        Raises:
            KeepwarmError: as `call`, here or while iterating.
        """
        call, rest = self._calling(model, payload)
        return ResultStream(run_blocking(self._sync.stream_call(call, rest)))

    async def acall(self, model: str, /, **payload: Any) -> CallReply:
        """As `call`, awaited. A call that is cancelled gives its lease back; a plain function runs on."""
        (call, rest), calls = self._calling(model, payload), self._async
        return await calls.answer(call, calls.workers.call, rest, call.call_reply)

    def astream_call(self, model: str, /, **payload: Any) -> StreamStart[AsyncResultStream, Any]:
        """As `stream_call`: `async for item in shim.astream_call(...)`, or `async with` and `await`."""
        return StreamStart(self._begin_call(model, payload))

    async def _begin_call(self, model: str, payload: Mapping[str, Any]) -> AsyncResultStream:
        call, rest = self._calling(model, payload)
        return await self._async.stream_call(call, rest)

    def _calling(self, model: str, payload: Mapping[str, Any]) -> tuple[Call, dict[str, Any]]:
        own = {name: value for name, value in payload.items() if name in OWN_OPTIONS}
        rest = {name: value for name, value in payload.items() if name not in OWN_OPTIONS}
        return self._session.call(model, "", own, "call"), rest

    # Paths of a server

    def http(self, model: str, **options: Unpack[CallOptions]) -> HttpClient:
        """An `httpx.Client` for a model's own paths, once the model is resident: `http.post("/inference")`.

        It holds a lease of the model, so that it stays, until it is closed (`with shim.http(...) as http`).
        The model's key is sent along, and to no other host.

        Args:
            model: a name of the configuration; Python models have no paths.
            options: `priority`, `deadline_s` for all of it, `connect_timeout`, `answer_timeout`.

        Raises:
            KeepwarmError: as `chat`, here or from a request; an answer of any status is an answer.
        """
        clients = importlib.import_module("shim.calls.http_clients")
        call = self._session.call(model, "", options, "http")
        client: HttpClient = run_blocking(
            clients.leased_client(clients.HttpClient, self._sync, call)
        )
        return client

    def ahttp(self, model: str, **options: Unpack[CallOptions]) -> HttpStart:
        """As `http`, an `httpx.AsyncClient`: `async with shim.ahttp(...) as http`, or `await`."""
        clients = importlib.import_module("shim.calls.http_clients")
        call = self._session.call(model, "", options, "http")
        start: HttpStart = clients.HttpStart(
            clients.leased_client(clients.AsyncHttpClient, self._async, call)
        )
        return start

    # Models

    def load(self, model: str, **options: Any) -> Mapping[str, Any]:
        """Make a model resident without a request; returns when it is, with the load that it waited for.

        A model that runs elsewhere is not this machine's to load: the answer is `{"remote": True}`.

        Raises:
            KeepwarmError: as `chat`.
        """
        return self._want(model, "load", options)

    def pin(self, model: str, *, persist: bool = False, **options: Any) -> Mapping[str, Any]:
        """Make a model resident and keep it: eviction may not touch it until `unpin`.

        A model that runs elsewhere cannot be kept by this machine: the answer is `{"remote": True}`.

        Args:
            model: a name of the configuration.
            persist: keep it pinned when this object is closed or this process ends, until `unpin` or
                the keeper's end.
            options: `priority` and `deadline_s`.

        Raises:
            NeverFits: it does not fit beside the configuration's pins and those that persist.
            DeadlineExceeded: pins of other programs kept it out; the error names them.
            KeepwarmError: as `chat`.
        """
        return self._want(model, "pin", options, persist=persist)

    def unpin(self, model: str) -> None:
        """Let a pinned model be evicted again; it stays resident until its bytes are needed.

        Raises:
            InvalidRequest: it runs elsewhere.
        """
        self._session.hint("unpin", model)

    def plan(self, models: Sequence[str] = (), *, any_order: bool = False) -> Plan:
        """Declare which models will be used next, in order: `with shim.plan(["a", "b"]): ...`.

        While one model works, the next one is loaded if no request needs the bytes. Each request inside
        consumes its model's next declared use; the uses that are left are withdrawn at the end. `async
        with` does the same.

        A request for a later use drops the few before it, which were left out. With `any_order`, for work
        that goes on side by side, they stay and are expected still.

        Raises:
            UnknownModel: one is not configured.
        """
        return Plan(self._session, models, any_order=any_order)

    def declare(self, models: Sequence[str]) -> None:
        """As `plan`, but it holds until the next `declare` or `close`. An empty list withdraws all uses.

        Raises:
            UnknownModel: one is not configured; the uses declared before still hold.
        """
        self._declared.declare(models)

    async def adeclare(self, models: Sequence[str]) -> None:
        """As `declare`, awaited."""
        await self._declared.adeclare(models)

    def override_role(self, models: Sequence[str]) -> None:
        """Let this object use evaluators that are coarser than Q8_0; other programs are refused as before.

        An evaluator that is so used is not pinned.

        Raises:
            UnknownModel: one is not configured.
        """
        check_names("The models", models)
        self._session.override(models)

    def release(self, model: str) -> None:
        """Mark a model as the first victim when bytes are needed. Ollama unloads its own at once.

        Raises:
            AdmissionDenied: it is pinned.
            InvalidRequest: it runs elsewhere.
        """
        self._session.hint("release", model)

    def unload(self, model: str) -> bool:
        """Unload a model as soon as no request leases it; returns whether it is gone.

        Raises:
            AdmissionDenied: it is pinned.
            InvalidRequest: it runs elsewhere.
        """
        return bool(self._session.hint("unload", model)["gone"])

    def describe(self, model: str) -> ModelInfo:
        """The facts of a model from its file: architecture, quantization, size. Loads nothing.

        Raises:
            UnknownModel: it is not configured.
            InvalidRequest: it is no name.
            BadModelFile: its file is missing or damaged.
        """
        if not isinstance(model, str):
            raise no_name(model)
        # Imported here, because most clients never read model files.
        describe = importlib.import_module("shim.models")
        found: ModelInfo = describe.describe_model(self.config, model)
        return found

    def would_evict(self, model: str) -> tuple[str, ...] | None:
        """The models that would leave if this one were asked for now; nothing is loaded.

        Returns:
            `()` where it is resident, remote, or fits beside all others but those that were released; None
            where engines in use or pins are in the way now.

        Raises:
            UnknownModel: it is not configured.
            KeepwarmError: it cannot be run, with the reason.
        """
        found = [*self.what_if([model])["evicted"].values(), []][0]
        return None if found is None else tuple(found)

    def fit_together(self, models: Sequence[str]) -> bool:
        """Whether models can all be resident at once, beside what others pinned; nothing is loaded.

        Raises:
            UnknownModel: one is not configured.
            KeepwarmError: one cannot be run, with the reason.
        """
        return bool(self.what_if(models)["together"])

    def what_if(self, models: Sequence[str]) -> dict[str, Any]:
        """What would happen if models were asked for now: all that the keeper says; nothing is loaded.

        Returns:
            `together`, `evicted` (by model, the models that would leave for it now, or None), `bytes` (by
            model and device) and `limits` (by device). Remote models are left out.

        Raises:
            UnknownModel: one is not configured.
            KeepwarmError: one cannot be run, with the reason.
        """
        check_names("The models", models)
        known = [self._session.call(model, "", {}, "load") for model in models]
        local = [call.model for call in known if not call.remote]
        if not local:
            return {"together": True, "evicted": {}, "bytes": {}, "limits": {}}
        return self._session.connections.ask("what_if", models=local)

    def status(self) -> dict[str, Any]:
        """Devices, engines, queue and last decisions, as `keepwarm ps --json` prints them."""
        return self._session.connections.ask("status")

    def history(self) -> list[PastCall]:
        """The last calls of this object that have ended (at most 100), the oldest first.

        Each says how long it took and what it waited for, or why it failed. Texts are not kept.
        """
        return list(self._session.past)

    def traced(self, service: str = "keepwarm") -> RunTrace:
        """A run as `[trace]` of the configuration describes it, whether that is enabled or not.

        `with shim.traced("letters") as run:` records what is done within.
        """
        return configured_run(self.config.trace, service)

    def _want(
        self, model: str, want: str, options: Mapping[str, Any], *, persist: bool = False
    ) -> Mapping[str, Any]:
        call = self._session.call(model, "", options, "load")
        if call.remote:
            self._session.load_remote(model)
            return {"remote": True}
        if call.run is not None:
            self._session.follow(call.run)
        fields = {**call.wants, "want": want}
        if persist:
            fields["persist"] = True
        if inside := leases_here():
            fields["inside"] = inside
        if want == "pin" and not persist:
            return self._session.pins.pin(model, fields)
        return self._session.connections.ask("lease", **fields)

    def reload(self, config: Config | str | Path | None = None) -> dict[str, list[str]]:
        """Make the keeper take over a configuration; models that did not change stay warm.

        Raises:
            ConfigError: the configuration is not valid; nothing changed.
        """
        return self._session.reload(config)

    # Ends

    def close(self) -> None:
        """Close the connections; an inline keeper ends with its engines. Idempotent.

        Calls that still run, in other threads and event loops too, end with an error and give their
        leases back. A later call raises `InvalidRequest`.
        """
        self._session.close()

    async def aclose(self) -> None:
        """As `close`, awaited."""
        await self._session.async_transport.aclose()
        await asyncio.to_thread(self._session.close)

    def __enter__(self) -> Self:
        self._session.start_inline()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._session.start_inline)
        return self

    async def __aexit__(self, *_failure: object) -> None:
        await self.aclose()
