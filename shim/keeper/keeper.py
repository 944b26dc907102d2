"""The keeper itself: catalog, core and shell together, and the methods behind clients' ops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backends.engine_process.orphans import sweep_leftovers
from backends.engine_process.process import engine_socket
from backends.footprint.inspect import Inspector
from backends.footprint.shared_code import SharedCode
from backends.llama.binaries import find_binary, runs_by_binding
from backends.llama.binding.binding_engine import NO_SERVER
from backends.machine.files.unwritten import UNWRITTEN
from budget import actions as act
from budget import events as ev
from budget.admission.own_leases import check_own_leases
from budget.admission.what_if import what_if
from budget.core import BudgetCore
from budget.errors import KeepwarmError, UnknownModel
from budget.eviction.policies import make_policy
from shim.config import Config
from shim.keeper import limits
from shim.keeper.catalog.catalog import Catalog, CatalogEngine, build_catalog
from shim.keeper.catalog.core_settings import core_settings, restart_keys, stage_bytes_per_s
from shim.keeper.catalog.corrections import Corrections
from shim.keeper.catalog.project_changes import ProjectChanges
from shim.keeper.catalog.projects import Projects
from shim.keeper.catalog.refresh import CatalogRefresh
from shim.keeper.engines.engine_makers import engine_factory
from shim.keeper.engines.liveness import Liveness
from shim.keeper.engines.monitor import KEEP_EVERY_S, MEASURE_EVERY_S, Monitor
from shim.keeper.engines.running_engine import Done, EngineFactory
from shim.keeper.kv.carry import KvCarrier
from shim.keeper.metrics.publishing import LOOK_EVERY_S, Publishing
from shim.keeper.process.closing import Steps
from shim.keeper.process.stale_files import sweep_state
from shim.keeper.server.status import grant_answer, status_of
from shim.keeper.shell.actions_out import Shell
from shim.keeper.shell.background import Background
from shim.keeper.shell.fault_counts import FaultCounts
from shim.keeper.shell.policy_state import recall
from shim.keeper.shell.request_ring import RequestRing
from shim.keeper.shell.yielding import Generated, yield_lease

LOG = logging.getLogger("keepwarm.keeper")

TELL_AGAIN_S = 1.0
WRITE_AGAIN_S = 10.0


class Keeper:
    """Owns every ledger and every engine. Runs on one asyncio loop."""

    def __init__(
        self,
        projects: Projects,
        catalog: Catalog,
        runtime: Path,
        factory: EngineFactory | None = None,
    ) -> None:
        config = projects.config
        self._own_factory = factory is None
        self.refresh = CatalogRefresh(catalog, self._adopt)
        self.runtime = runtime
        self.started_ns = time.monotonic_ns()
        self.policy = make_policy(config.budget.policy)
        core = BudgetCore(
            catalog.pools,
            catalog.models(),
            catalog.specs(),
            self.policy,
            core_settings(config),
        )
        build = Inspector().build_key()
        if runs_by_binding():
            LOG.warning("%s", NO_SERVER)
        # Engines share their code with these mappings; the overhead that is booked counts on it.
        self._code = SharedCode(None if runs_by_binding() else find_binary("llama-server"))
        corrections = Corrections(catalog.learned, build)
        faults = FaultCounts()
        carrier = KvCarrier(None, build, faults)
        carrier.open(config)
        self.shell = Shell(
            core,
            catalog,
            runtime,
            factory or engine_factory(config),
            corrections,
            carrier,
            stage_bytes_per_s(config),
            faults,
        )
        self._numbers = itertools.count(1)
        self.background = Background(self.shell.faults)
        self.liveness = Liveness(self.shell, config.keeper.stall_timeout)
        self.monitor = Monitor(self.shell, self.policy)
        self.metrics = Publishing(self.shell, self.monitor.free_bytes, lambda: self.config.metrics)
        self.ring = RequestRing(self.shell.stories, self.shell.history)
        self.ring.follow(config.keeper)
        self.changes = ProjectChanges(projects, self.refresh, core.state)
        self.shell.loads.reread = self._reread

    @property
    def catalog(self) -> Catalog:
        """The present catalog of models."""
        return self.refresh.catalog

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.catalog.config

    @classmethod
    async def create(
        cls,
        config: Config,
        runtime: Path,
        factory: EngineFactory | None = None,
        projects: Projects | None = None,
    ) -> Keeper:
        """Read the models, sweep what an earlier keeper left, and load the pinned ones.

        Args:
            config: the configuration of the first project.
            runtime: the keeper's folder.
            factory: makes engines; real processes when not given.
            projects: all projects, where an earlier keeper had further ones.

        Raises:
            ConfigError: the device is not there, the pins do not fit together, or the path of the
                runtime folder is too long for engines' sockets.
        """
        engine_socket(runtime)
        await asyncio.to_thread(sweep_state, runtime)
        swept = await asyncio.to_thread(sweep_leftovers, runtime)
        if swept:
            LOG.warning("ended %d engines that an earlier keeper left: %s", len(swept), swept)
        if projects is None:
            projects = await asyncio.to_thread(Projects.of, config)
        catalog = await asyncio.to_thread(build_catalog, projects.config)
        for name, error in catalog.errors.items():
            LOG.warning("model %s cannot be run now: %s", name, error)
        keeper = cls(projects, catalog, runtime, factory)
        try:
            recall(keeper.policy)
            keeper.shell.history.speeds.recall()
            if catalog.broken_models:
                keeper.shell.post(_reconfigured(catalog))
            keeper.shell.post(ev.Started())
            keeper._begin_recurring()
            await keeper.metrics.begin()
        except BaseException:
            await keeper.close()
            raise
        return keeper

    def _begin_recurring(self) -> None:
        monitor = self.monitor
        self.background.every("measuring", MEASURE_EVERY_S, monitor.measure)
        self.liveness.begin(self.background)
        self.background.every("saving what was learned", KEEP_EVERY_S, monitor.remember)
        self.background.every("dropping old conversations", KEEP_EVERY_S, monitor.expire)
        self.background.every("publishing metrics", LOOK_EVERY_S, self.metrics.look)
        self.background.every("looking after full disks", WRITE_AGAIN_S, _write_again)
        self.background.every("telling the core again", TELL_AGAIN_S, self.shell.redeliver)

    async def close(self, *, keep_conversations: bool = False) -> None:
        """End every engine, within a bound and whatever fails.

        Args:
            keep_conversations: save the KV state of idle engines for the next keeper.
        """
        shell, supervisor = self.shell, self.shell.supervisor
        # Asked before anything is awaited: leases end with their clients' connections, answers do
        # not yet.
        in_use = {engine.engine_id for engine in shell.core.state.leases.values()}
        grace_s = self.config.keeper.stop_grace
        end = Steps(shell.faults, limits.END_S + grace_s)
        shell.close()
        self.refresh.close()
        try:
            await end.step("ending recurring tasks", self.background.close)
            await end.step("ending metrics", self.metrics.close)
            if keep_conversations:
                saving = partial(supervisor.save_conversations, in_use, limits.SAVE_AT_END_S)
                await end.step("saving conversations", saving)
            await end.step(
                "ending owed events", partial(shell.owed_events.close, limits.END_STEP_S)
            )
            await end.step("ending what was prepared", shell.loads.close)
            await end.step("ending engines", partial(supervisor.close, grace_s=grace_s), grace_s)
            await end.step(
                "keeping KV state", partial(supervisor.kv.close, keep=keep_conversations)
            )
            await end.step("saving what was learned", self._remember)
        finally:
            supervisor.kill()
            self._code.close()

    async def _remember(self) -> None:
        await self.monitor.remember()

    # Requests

    def is_ready_for(self, model: str) -> bool:
        """Whether a request for a model can be posted with the present catalog.

        Raises:
            UnknownModel: it is not configured, or not here.
        """
        refresh = self.refresh
        if model not in refresh.catalog.config.models:
            raise UnknownModel(
                f"No model of this keeper is called {model!r}.",
                hint=f"Its configuration ({self.config.file or 'given in code'}) has: "
                f"{', '.join(sorted(self.config.models)) or 'none'}.",
                model=model,
            )
        return refresh.is_ready(model)

    async def make_ready(self, model: str) -> None:
        """Read a model's file again if it changed, could not be read before, or is not downloaded yet.

        Raises:
            KeepwarmError: why the model cannot be run now.
        """
        await self.refresh.make_ready(model)

    async def _reread(self, engine: CatalogEngine) -> None:
        """Read an engine's changed files again. Waiting requests move to the new engine, or fail."""
        self.refresh.look_again()
        for name in engine.names:
            with contextlib.suppress(KeepwarmError):
                if not self.is_ready_for(name):
                    await self.make_ready(name)

    def is_up(self, engine_id: str, generation: int) -> bool:
        """Whether that generation of an engine can still be leased."""
        residents = self.shell.core.state.residents
        if engine_id not in residents:
            return False
        engine = residents[engine_id]
        return engine.resident and engine.generation == generation

    async def bytes_of(self, engine_id: str, generation: int) -> dict[str, dict[str, Any]] | None:
        """What an engine takes now, what is booked and what it may take, by device; None without it."""
        running = self.shell.supervisor.now.get(engine_id)
        if running is None or running.generation != generation:
            return None
        await self.monitor.refresh()
        found, most = self.monitor.measured(engine_id, running) or {}, running.engine.ceilings()
        return {
            device: {
                "found_bytes": found.get(device),
                "booked_bytes": booked,
                "ceiling_bytes": most.get(device),
            }
            for device, booked in running.placement.bookings
        }

    def served(self, lease: str, spent: dict[str, Any]) -> None:
        """Note a client's report on its finished request: the engine's own timings."""
        engine = self.shell.core.state.leases.get(lease)
        running = self.shell.supervisor.now.get(engine.engine_id) if engine is not None else None
        if running is not None and spent:
            self.shell.supervisor.kv.served(running.engine, spent)
            self.shell.stories.spent(lease, spent)

    def ask(
        self,
        client_id: str,
        model: str,
        done: Done,
        *,
        want: ev.Want = "lease",
        priority: int | None = None,
        deadline_s: float | None = None,
        plan: str | None = None,
        preemptible: bool = False,
        persist: bool = False,
        owner: str | None = None,
        inside: Sequence[str] = (),
    ) -> str:
        """Ask for an outcome; `done` gets the grant or the error, now or later. Returns the id.

        Raises:
            InvalidRequest: it would wait for `inside`, leases that its caller holds while it waits.
        """
        if inside:
            check_own_leases(self.shell.core.state, model, want, inside)
        request_id = f"r{next(self._numbers)}"
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        request = ev.RequestArrived(
            request_id,
            client_id,
            model,
            want,
            priority,
            deadline,
            plan,
            preemptible,
            persist,
            owner,
        )
        self.shell.ask(request, done)
        return request_id

    async def yielded(self, client_id: str, lease: str, generated: Generated) -> dict[str, Any]:
        """Take a lease back in mid-answer; returns when it is granted again, with the grant.

        Raises:
            KeepwarmError: the request ends here.
        """
        grant, tokens = await yield_lease(self.shell, client_id, lease, generated)
        return {**self.granted(grant), "tokens": tokens}

    def granted(self, grant: act.Grant) -> dict[str, Any]:
        """The answer with a grant, for its client.

        Raises:
            InternalError: the answer cannot be made. The lease is over, because no client would end it.
        """
        return grant_answer(self.shell, grant)

    def plan(
        self,
        client_id: str,
        models: Sequence[str],
        name: str | None,
        overridden: Sequence[str] = (),
        *,
        any_order: bool = False,
    ) -> None:
        """Declare a client's coming uses, in order; models that cannot be run now are left out.

        Raises:
            UnknownModel: one is not configured, or not local; the uses declared before still hold.
            RoleViolation: one does not meet its role, which no later request would change.
        """
        for model in models:
            if not self.is_ready_for(model):
                self.refresh.check_role(model)
            elif model not in overridden:
                self.refresh.check_fit(model)
        known = self.shell.core.state.models
        # An evaluator whose files are still to be looked at may be unfit as it was read last.
        order = tuple(
            model
            for model in models
            if model in known and (model in overridden or self.refresh.unfit(model) is None)
        )
        self.shell.post(ev.UsesDeclared(client_id, order, name, any_order))

    # State

    async def what_if(self, models: Sequence[str]) -> dict[str, Any]:
        """What would be evicted for each model now, and whether all fit together. Loads nothing.

        Raises:
            UnknownModel: one is not configured, or not local.
            KeepwarmError: one cannot be run, with the reason.
        """
        for model in models:
            if not self.is_ready_for(model):
                await self.make_ready(model)
        return what_if(self.shell.core.state, models, time.monotonic()).to_wire()

    def status(self) -> dict[str, Any]:
        """Everything that `keepwarm ps` shows, JSON-serialisable."""
        state = status_of(self.shell, self.catalog, self.monitor.measured)
        state["keeper"] = {
            "pid": os.getpid(),
            "runtime": str(self.runtime),
            "config": str(self.config.file) if self.config.file else None,
            "uptime_s": round((time.monotonic_ns() - self.started_ns) / 1e9, 3),
            "restart": restart_keys(self.changes.began_with, self.config),
            "faults": self.shell.faults.rows(),
            "background": [*self.background.rows(), *UNWRITTEN.rows()],
            "books": self.shell.feed.checked(),
        }
        state["projects"] = self.changes.projects.rows()
        state["references"] = dict(self.changes.projects.references)
        return state

    async def until_gone(self, model: str, timeout_s: float) -> bool:
        """Wait until a model's engine is gone; returns whether it is."""
        prepared = self.catalog.prepared.get(model)
        if prepared is None:
            return True
        return await self.shell.supervisor.until_gone(prepared.engine_id, timeout_s)

    # Configuration

    async def reload(self, config: Config) -> dict[str, list[str]]:
        """Take over another configuration: see `ProjectChanges.reload`."""
        return await self.changes.reload(config)

    def _adopt(self, catalog: Catalog) -> None:
        """Replace the catalog.

        Raises:
            KeepwarmError: the core refuses the new one; nothing changed.
        """
        supervisor, before, config = (
            self.shell.supervisor,
            self.shell.supervisor.catalog,
            catalog.config,
        )
        supervisor.catalog = catalog
        try:
            self.shell.post(_reconfigured(catalog))
        except BaseException:
            supervisor.catalog = before
            raise
        # The core has accepted it, so it is in force even if a later step fails.
        known, self.refresh.catalog = self.refresh.catalog, catalog
        self.refresh.look_again()
        held = {engine.engine_id for engine in self.shell.core.state.residents}
        catalog.keep_engines(held | supervisor.now.keys())
        self.shell.stager.rate_bytes_per_s = stage_bytes_per_s(config)
        if self._own_factory:
            self.shell.loads.factory = engine_factory(config)
        self.ring.follow(config.keeper)
        self.liveness.configured(config.keeper.stall_timeout, self.background)
        try:
            supervisor.kv.configured(known.configured(), catalog.configured(), config)
        except Exception as error:
            self.shell.faults.note("kv", "sorting out KV state after a reload", error)


async def _write_again() -> None:
    await asyncio.to_thread(UNWRITTEN.try_again)


def _reconfigured(catalog: Catalog) -> ev.Reconfigured:
    return ev.Reconfigured(
        catalog.models(),
        catalog.specs(),
        catalog.pools,
        core_settings(catalog.config),
        {name: broken.error.to_wire() for name, broken in catalog.broken_models.items()},
    )
