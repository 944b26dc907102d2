"""A client's session: a configuration, the connections to a keeper, two transports."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.base import Capabilities, Endpoint
from backends.flows import run_blocking
from backends.kinds import Backend, Verb
from backends.openai.async_client import AsyncTransport
from backends.openai.chat_messages import has_images
from backends.openai.connections.bounds import Limits
from backends.openai.options import OPTIONS, FixedOptions, split_options
from backends.openai.protocol import ChatRequest
from backends.openai.resume import can_restore, can_resume, of_texts
from backends.openai.sync_client import SyncTransport
from backends.python.links import LoopLink, ThreadLink
from backends.python.worker_calls import WorkerCalls
from budget.errors import (
    ConfigError,
    InvalidRequest,
    KeeperUnavailable,
    KeepwarmError,
)
from shim.calls.agreement import Agreement
from shim.calls.call import Call, Messages, Settled
from shim.calls.declaring import DeclaredUsesBook, no_name
from shim.calls.lifetime.inline_keeper import InlineStart
from shim.calls.options.own_options import OWN_OPTIONS, timeouts_of
from shim.calls.own_run import OwnRun
from shim.calls.routing.routes import Routes
from shim.calls.session_pins import Pins
from shim.calls.tracing import trace_history
from shim.config import FILE_NAME, Config, ModelEntry, load_config, user_config_file
from shim.config.endpoints import read_endpoints, with_endpoints
from shim.config.schema.endpoint_values import EndpointEntry
from shim.config.verbs import cannot, verbs_of
from shim.paths import named_runtime, runtime_dir
from shim.replies import PastCall
from shim.wire.event_loops import LoopConnectionPool
from shim.wire.launch import connect_or_start, running_connection, try_connect
from shim.wire.silence import EXPLAIN_S, closed_before
from shim.wire.threads import BlockingConnection, BlockingPool
from traces import RunTrace

if TYPE_CHECKING:
    from shim.keeper.engines.running_engine import EngineFactory
    from shim.keeper.process.inline import InlineKeeper


LOG = logging.getLogger("keepwarm.client")
CALLS_KEPT = 100
SETTLED_KEPT: Final = 256
_FIXED: Final = frozenset((str, int, float, bool, type(None)))
"""The kinds of options that cannot change after a call."""
_VERBS: Final[Mapping[str, Verb]] = {
    "chat": "chat",
    "embeddings": "embed",
    "call": "call",
    "http": "http",
    "rerank": "rerank",
    "transcribe": "transcribe",
    "speak": "speak",
    "tokenize": "tokenize",
}
"""What each operation asks a model for; the others ask for its residency alone."""


class Session:
    """Finds or starts the keeper when it is first needed, and keeps the connections.

    Args:
        config: a configuration, a file, a mapping shaped like one, or None to search.
        inline: run the keeper inside this process; by default for a configuration made in code.
        runtime: the keeper's folder; by default that of the user.
        factory: makes an inline keeper's engines; for tests.
        share: an inline keeper books devices beside another keeper.
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
        path = Path(config) if isinstance(config, str | Path) else None
        self._agreement = Agreement(_configuration(config), path)
        self.inline = (self.config.file is None) if inline is None else inline
        self._runtime = runtime
        self._factory = factory
        self._share = share
        if share and not self.inline:
            raise ConfigError(
                "share=True is for an inline keeper; a background keeper has its devices alone.",
                hint="Leave it out, or give inline=True.",
            )
        self.run = OwnRun()
        self._keeper = InlineStart(self._make_inline)
        self._closed = False
        agreement = self._agreement
        self.connections = BlockingPool(self._connect, agreement.hello, agreement)
        self.async_connections = LoopConnectionPool(self._connect, agreement.hello, agreement)
        self.sync_transport = SyncTransport()
        self.async_transport = AsyncTransport()
        self.workers = WorkerCalls(ThreadLink)
        self.async_workers = WorkerCalls(LoopLink)
        self.routes = Routes()
        self.declarations = DeclaredUsesBook()
        self.pins = Pins(self.connections)
        self.past: deque[PastCall] = deque(maxlen=CALLS_KEPT)
        self._followed: dict[str, Callable[[], None]] = {}
        self._settled: dict[object, Settled] = {}
        self.overridden: set[str] = set()
        """Evaluators that this session uses although they are under the floor."""

    @property
    def config(self) -> Config:
        """The configuration in force for this session."""
        return self._agreement.config

    @property
    def runtime(self) -> Path:
        """The keeper's folder."""
        if (keeper := self._keeper.running) is not None:
            return keeper.runtime
        return named_runtime(self._runtime) if self._runtime is not None else runtime_dir()

    # Connecting

    def start_inline(self) -> None:
        """Start the inline keeper if this session has one, with a model to run, and it does not run yet.

        Raises:
            InvalidRequest: the session is closed.
            KeepwarmError: why the keeper cannot run.
        """
        if self.inline and not all(entry.remote for entry in self.config.models.values()):
            self._keeper.start()

    def _make_inline(self) -> InlineKeeper:
        # Imported here, because the keeper is two fifths of the import time and most clients never need it.
        inline = importlib.import_module("shim.keeper.process.inline")
        keeper: InlineKeeper = inline.InlineKeeper(
            self.config, factory=self._factory, share=self._share
        )
        return keeper

    def _connect(self) -> socket.socket:
        if not self.inline:
            return connect_or_start(self.runtime, self.config)
        sock = try_connect(self._keeper.start().runtime)
        if sock is None:
            raise KeeperUnavailable("The inline keeper has ended.", hint="Make a new Shim.")
        return sock

    def connect_running(self) -> BlockingConnection | None:
        """A connection to a keeper that runs already, whatever its configuration; else None."""
        if self.inline and self._keeper.running is None:
            return None
        return running_connection(self.runtime)

    def close(self) -> None:
        """Close every connection, of event loops too; an inline keeper ends with its engines. Idempotent.

        Calls that run in other threads and loops end with an error.
        """
        self._closed = True
        self._settled.clear()
        self.run.close()
        self._finish_followed()
        self.connections.close()
        self.async_connections.close()
        self.declarations.drop()
        self.pins.close()
        self.sync_transport.end()
        self.async_transport.end()
        self.workers.close()
        self.async_workers.close()
        self._keeper.close()

    def _finish_followed(self) -> None:
        for finish in list(self._followed.values()):
            try:
                finish()
            except KeeperUnavailable:
                # If this request fails, requests about the other runs would fail, too.
                break
            except KeepwarmError:
                continue
        self._followed.clear()

    def reload(self, config: Config | str | Path | None) -> dict[str, list[str]]:
        """Make the keeper take over a configuration, the one it was read from when None.

        Raises:
            ConfigError: there is no file that it was read from.
        """
        if self._closed:
            raise closed_before()
        if config is None and self.config.file is None:
            raise ConfigError(
                "This configuration was read from no file, so there is none to read again.",
                hint="Give `reload` a configuration.",
            )
        new = _configuration(config if config is not None else self.config.file)
        connection = self.connect_running()
        if connection is None:
            raise KeeperUnavailable("No keeper runs.", hint="The next call starts one.")
        try:
            answer = connection.ask(
                "reload",
                config=new.to_mapping(),
                file=str(new.file) if new.file else None,
                label=str(new.file or "the configuration given in code"),
            )
        finally:
            connection.close()
        self._agreement.set(new)
        if config is not None:
            self._agreement.set_path(Path(config) if isinstance(config, str | Path) else None)
        return answer

    # Calls

    def call(
        self, model: str, messages: Messages, options: Mapping[str, Any], operation: str = "chat"
    ) -> Call:
        """A call of a configured model.

        Raises:
            UnknownModel: it is not configured.
            InvalidRequest: an option of keepwarm's own is not allowed, the model does something else, or
                the session is closed; or the model is no name.
        """
        if not isinstance(model, str):
            raise no_name(model)
        config, kinds = self._agreement.config, tuple(map(type, options.values()))
        # 1, 1.0 and True are one key, and not one option.
        key = (model, operation, *options.items(), *kinds) if _FIXED.issuperset(kinds) else None
        known = self._settled.get(key)
        if known is None or known.config is not config:
            known = self._settle(config, model, options, operation)
            if key is not None:
                if len(self._settled) >= SETTLED_KEPT:
                    self._settled.clear()
                self._settled[key] = known
        if known.texts_alone and not isinstance(messages, str) and has_images(messages):
            raise cannot(config, model, "images")
        wants, limits = known.wants.copy(), Limits(timeouts=known.timeouts)
        if "deadline_s" in wants:
            limits["deadline"] = time.monotonic() + wants["deadline_s"]
        if model in self.overridden:
            wants["overridden"] = True
        if self.declarations.open and (plan := self.declarations.name()) is not None:
            wants["plan"] = plan
        call = Call(
            model,
            ChatRequest(messages, known.options),
            wants,
            limits,
            known.remote,
            operation,
            known.low and of_texts(messages),
            known.resumable,
            serving=model,
            own_timeouts=known.own_timeouts,
        )
        if call.run is None and config.trace.enabled:
            call.run = self.run.get(config.trace)
        return call

    def _settle(
        self, config: Config, model: str, options: Mapping[str, Any], operation: str
    ) -> Settled:
        """What all calls of a model with these options have in common."""
        entry, verb = self._entry(model), _VERBS.get(operation)
        if verb is not None and verb not in verbs_of(entry):  # noqa: SIM102 - each says one thing
            # Engines of a test's factory may do more than the model's role says.
            if self._factory is None or verb != "embed":
                raise cannot(config, model, verb)
        own, rest = split_options(options, OWN_OPTIONS, OPTIONS if verb == "chat" else ())
        own_timeouts = {name: own[name] for name in own if name.endswith("_timeout")}
        # Takes the time-outs out of them: they are the client's own.
        timeouts, resumable = timeouts_of(entry, own), entry.is_gguf and can_restore(rest)
        return Settled(
            config=config,
            options=FixedOptions(rest),
            wants={"model": model, "want": "lease", **own},
            timeouts=timeouts,
            own_timeouts=own_timeouts,
            remote=entry.url is not None,
            resumable=resumable,
            texts_alone=verb == "chat" and "images" not in verbs_of(entry),
            low=verb == "chat" and resumable and own.get("priority", entry.priority) < 0,
        )

    def override(self, models: Collection[str]) -> None:
        """Let this session use evaluators that are under the floor.

        Raises:
            UnknownModel: one is not configured.
        """
        for model in models:
            self._entry(model)
        self.overridden.update(models)

    def hint(self, kind: str, model: str) -> Mapping[str, Any]:
        """Tell the keeper that a model is to be unloaded, released or unpinned.

        Raises:
            UnknownModel: it is not configured.
            InvalidRequest: it runs elsewhere, or the session is closed.
            AdmissionDenied: it is pinned, and not to be unpinned.
        """
        entry = self._entry(model)
        if entry.backend == "ollama" and kind in ("release", "unload"):
            run_blocking(self.sync_transport.flows.reside(self.remote_endpoint(model), 0))
            return {"gone": True}
        if entry.url is not None:
            raise InvalidRequest(
                f"{model} runs at {entry.url}: keepwarm has nothing of it here to {kind}.",
                model=model,
            )
        if kind == "unpin":
            self.pins.unpin(model)
            return {}
        return self.connections.ask("hint", kind=kind, model=model)

    def _entry(self, model: str) -> ModelEntry:
        if self._closed:
            raise closed_before()
        if not isinstance(model, str):
            raise no_name(model)
        return self._agreement.config.entry(model)

    def takes_over(self, call: Call) -> bool:
        """Give a call to the fallback of the model that serves it, if there is one that does the same.

        A model that was asked before gets the call no more.
        """
        config = self.config
        entry = config.models.get(call.serving)
        name = entry.fallback if entry is not None else None
        other = config.models.get(name) if name is not None else None
        verb = _VERBS.get(call.operation)
        if name is None or other is None or name in call.asked or verb is None:
            return False
        if verb not in verbs_of(other):
            return False
        call.asked.append(call.serving)
        call.serving, call.wants["model"] = name, name
        call.wants["overridden"] = name in self.overridden
        call.remote, call.route, call.passed = other.url is not None, None, []
        call.limits["timeouts"] = timeouts_of(other, dict(call.own_timeouts))
        call.resumable = other.is_gguf and can_resume(call.request)
        if call.preemptible:
            call.preemptible = call.wants["preemptible"] = call.resumable
        return True

    def remote_endpoint(self, model: str, one: EndpointEntry | None = None) -> Endpoint:
        """The endpoint of a remote model, or `one` of several. Requests go there past the local budget."""
        return remote_endpoint(model, self.config, one)

    def load_remote(self, model: str) -> None:
        """Let Ollama load a model, which it keeps as long as the configuration says; others are not ours.

        Raises:
            KeepwarmError: it cannot.
        """
        if self.config.models[model].backend == "ollama":
            endpoint = self.remote_endpoint(model)
            run_blocking(self.sync_transport.flows.reside(endpoint, endpoint.keep_alive_s))

    # Traces

    def follow(self, run: RunTrace) -> None:
        """When a run (or this session) ends, add the keeper's history of that time to the run's trace."""
        if run.run_id in self._followed:
            return
        pid = os.getpid()

        def finish() -> None:
            if self._followed.pop(run.run_id, None) is None or os.getpid() != pid:
                return
            if self.connections.flows.found_silent or self.async_connections.found_silent:
                return
            connection = self.connect_running()
            if connection is None:
                return
            try:
                until_ns = time.monotonic_ns()
                answer = connection.ask(
                    "history", within_s=EXPLAIN_S, since_ns=run.started_ns, until_ns=until_ns
                )
            finally:
                connection.close()
            trace_history(run, answer)

        self._followed[run.run_id] = finish
        run.on_finish(finish)


def remote_endpoint(model: str, config: Config, one: EndpointEntry | None = None) -> Endpoint:
    """The endpoint of a remote model, or `one` of several. Requests go there past the local budget."""
    entry = config.models[model]
    if entry.url is None:
        raise ConfigError(f"{model} has no url.")
    backend: Backend = entry.backend
    at_ollama = backend == "ollama"
    keeps = at_ollama and "keep_alive" in entry.model_fields_set
    url = one.url if one is not None else entry.url
    return Endpoint(
        base_url=url.removesuffix("/v1") if at_ollama else url,
        model_id=(one.model_id if one is not None else None) or entry.model_id or model,
        backend=backend,
        api_key_env=entry.api_key_env,
        ca_file=str(entry.ca_file) if entry.ca_file is not None else None,
        capabilities=Capabilities(embeddings=True, grammar=False, rerank=not at_ollama),
        keep_alive_s=entry.keep_alive if keeps else None,
    )


def _configuration(given: Config | str | Path | Mapping[str, Any] | None) -> Config:
    if isinstance(given, Config):
        return given
    if given is None or isinstance(given, str | Path):
        config = load_config(Path(given) if given is not None else None)
        if not config.models:
            raise _nothing_configured(config)
        return config
    config = Config.from_mapping(given)
    endpoints = read_endpoints(os.environ, Path.cwd())
    return Config.from_mapping(with_endpoints(given, endpoints)) if endpoints else config


def _nothing_configured(config: Config) -> ConfigError:
    looked = f"$KEEPWARM_CONFIG, ./{FILE_NAME}, {user_config_file(os.environ)}, $HARNESS_ENDPOINTS"
    where = str(config.file) if config.file else f"looked in {looked}"
    return ConfigError(
        f"No model is configured ({where}).",
        hint=f"Write a {FILE_NAME} with [models.NAME] path = ..., or pass Shim a configuration.",
    )
