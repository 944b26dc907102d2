"""Model files that change under a running keeper: every kind of change, from before a load to its end.

Whatever happens to one file, its requests end with a lease or a typed error that is not ours, no lease
and no byte stays behind, the other model is served, and the model serves again once its file is good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.errors import BadModelFile, InternalError, KeepwarmError, LoadFailed
from shim.keeper.catalog import catalog as catalogs
from tests.keeper.catalog.changing import LIMIT_S, Changing, changing, model_bytes, remove, run

DAMAGED, OTHER = "m", "a"
UNDER_WAY = (State.LOADING, State.EVICTING)


# What happens to a file


def _replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(model_bytes("another", vocabulary=32))
    new.rename(path)


def _overwritten(path: Path) -> None:
    path.write_bytes(model_bytes("another", vocabulary=32))


def _cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def _in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        remove(path)
        make(path)

    return change


def _lost_shard(path: Path) -> None:
    second = path.with_name(path.name.replace("00001-of", "00002-of"))
    second.rename(second.with_name("elsewhere"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": os.utime,
    "replaced by another": _replaced,
    "overwritten by another": _overwritten,
    "cut to nothing": _cut(0.0),
    "cut within its header": _cut(0.1),
    "cut within its tensors": _cut(0.9),
    "deleted": Path.unlink,
    "a folder": _in_its_place(Path.mkdir),
    "a FIFO": _in_its_place(os.mkfifo),
    "a loop": _in_its_place(lambda path: path.symlink_to(path)),
    "a device": _in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "not to be read": lambda path: path.chmod(0o000),
    "without its second shard": _lost_shard,
}
SHORT = {
    "touched",
    "replaced by another",
    "cut within its tensors",
    "deleted",
    "a FIFO",
    "without its second shard",
}
"""The others come at the same moments to much the same: in the long run of the tests."""
STAYS_GOOD = {"touched", "replaced by another", "overwritten by another"}


# When it happens


@dataclass
class Scene:
    """A keeper, the change that is due, and every request so far."""

    it: Changing
    change: Callable[[], object]
    asked: list[asyncio.Task[act.Grant]] = field(default_factory=list)

    def ask(self, model: str, client: str = "c") -> asyncio.Task[act.Grant]:
        """A whole use, whose outcome is looked at in the end."""
        task = asyncio.create_task(self.it.serve(model, client))
        self.asked.append(task)
        return task

    async def until_queued(self, model: str) -> None:
        """A request of a model has reached the core, and waits there."""
        state = self.it.keeper.shell.core.state
        await until(lambda: any(request.model == model for request in state.queue))

    async def serve(self, model: str) -> None:
        """A whole use."""
        await self.it.serve(model)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until something holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - whatever the loop has to do brings it about
            await asyncio.sleep(0)


async def _before_the_first_request(at: Scene) -> None:
    at.change()
    at.ask(DAMAGED)


async def _while_queued(at: Scene) -> None:
    lease = await at.it.lease(OTHER)
    at.ask(DAMAGED)
    await at.until_queued(DAMAGED)
    at.change()
    at.it.end(lease)


async def _while_queued_and_asked_again(at: Scene) -> None:
    lease = await at.it.lease(OTHER)
    at.ask(DAMAGED)
    await at.until_queued(DAMAGED)
    at.change()
    at.ask(DAMAGED, "d")
    await asyncio.wait({at.asked[-1]}, timeout=0.05)
    at.it.end(lease)


async def _while_loading(at: Scene) -> None:
    at.it.gate(DAMAGED).clear()
    at.ask(DAMAGED)
    await until(lambda: any(e.entry.names == (DAMAGED,) for e in at.it.engines))
    at.change()
    at.it.gate(DAMAGED).set()


async def _while_idle(at: Scene) -> None:
    await at.serve(DAMAGED)
    at.change()
    at.ask(DAMAGED)


async def _while_leased(at: Scene) -> None:
    lease = await at.it.lease(DAMAGED)
    at.change()
    at.ask(DAMAGED, "d")
    await asyncio.wait({at.asked[-1]}, timeout=0.05)
    at.it.end(lease)


async def _while_leased_by_a_client_that_goes(at: Scene) -> None:
    await at.it.lease(DAMAGED, "gone")
    at.change()
    at.ask(DAMAGED, "d")
    at.it.keeper.shell.post(ev.ClientGone("gone"))


async def _while_staged(at: Scene) -> None:
    lease = await at.it.lease(OTHER)
    at.it.keeper.plan("c", [OTHER, DAMAGED], None)
    history = at.it.keeper.shell.history
    await until(lambda: any(staging.end_ns for staging in history.stagings))
    at.change()
    at.ask(DAMAGED)
    at.it.end(lease)


async def _while_it_is_being_staged(at: Scene) -> None:
    lease = await at.it.lease(OTHER)
    at.change()
    at.it.keeper.plan("c", [OTHER, DAMAGED], None)
    at.ask(DAMAGED)
    at.it.end(lease)


async def _under_an_open_plan(at: Scene) -> None:
    at.it.keeper.plan("c", [DAMAGED, OTHER, DAMAGED, OTHER], None)
    await at.serve(DAMAGED)
    at.change()
    await at.serve(OTHER)
    at.ask(DAMAGED)
    with contextlib.suppress(KeepwarmError):
        at.it.keeper.plan("c", [DAMAGED, OTHER, DAMAGED], None)


async def _while_pinned(at: Scene) -> None:
    shell = at.it.keeper.shell
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    at.it.keeper.ask("p", DAMAGED, answer.set_result, want="pin")
    await answer
    at.change()
    at.ask(DAMAGED)
    await asyncio.wait({at.asked[-1]}, timeout=0.05)
    shell.post(ev.ClientGone("p"))


async def _during_a_reload(at: Scene) -> None:
    await at.serve(DAMAGED)
    begun, may_end = threading.Event(), threading.Event()
    real = vars(catalogs)["budget_devices"]

    def held(*args: Any) -> Any:
        begun.set()
        assert may_end.wait(LIMIT_S)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogs, "budget_devices", held)
        reloading = asyncio.create_task(at.it.keeper.reload(at.it.keeper.config))
        await asyncio.to_thread(begun.wait, LIMIT_S)
    at.change()
    at.ask(DAMAGED)
    may_end.set()
    await reloading
    at.ask(DAMAGED, "d")


async def _before_a_reload(at: Scene) -> None:
    lease = await at.it.lease(DAMAGED)
    at.change()
    await at.it.keeper.reload(at.it.keeper.config)
    at.ask(DAMAGED, "d")
    await asyncio.wait({at.asked[-1]}, timeout=0.05)
    at.it.end(lease)


async def _with_a_plan_that_is_stale(at: Scene) -> None:
    at.change()
    at.it.keeper.plan("c", [DAMAGED, OTHER, DAMAGED], None)
    await at.serve(OTHER)
    at.ask(DAMAGED)
    await asyncio.wait({at.asked[-1]}, timeout=0.05)
    at.it.keeper.shell.post(ev.HintGiven("release", OTHER))


MOMENTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    moment.__name__.strip("_").replace("_", " "): moment
    for moment in (
        _before_the_first_request,
        _while_queued,
        _while_queued_and_asked_again,
        _while_loading,
        _while_idle,
        _while_leased,
        _while_leased_by_a_client_that_goes,
        _while_staged,
        _while_it_is_being_staged,
        _under_an_open_plan,
        _while_pinned,
        _during_a_reload,
        _before_a_reload,
        _with_a_plan_that_is_stale,
    )
}


@contextlib.asynccontextmanager
async def _scene(change: str, budget: dict[str, Any]) -> AsyncIterator[tuple[Scene, Path]]:
    shards = DAMAGED if change == "without its second shard" else ""
    names = OTHER + DAMAGED
    async with changing(names, budget, shards=shards, one_fits=True) as it:
        path = it.file(DAMAGED)
        kept = it.folder / "kept"
        kept.mkdir()
        for file in it.folder.glob(f"{DAMAGED}*"):
            (kept / file.name).write_bytes(file.read_bytes())
        yield Scene(it, lambda: CHANGES[change](path)), kept


async def _outcomes(at: Scene) -> list[KeepwarmError]:
    """Every request ends; the errors of those that were not served."""
    errors = []
    for task in at.asked:
        try:
            await asyncio.wait_for(task, LIMIT_S)
        except KeepwarmError as error:
            errors.append(error)
    return errors


async def _looked_at(at: Scene) -> None:
    """Everything else that is asked about the model ends as well, typed."""
    at.it.keeper.status()
    for kind in ("release", "unload", "unpin"):
        with contextlib.suppress(KeepwarmError):
            at.it.keeper.shell.post(ev.HintGiven(kind, DAMAGED))
    await at.it.keeper.until_gone(DAMAGED, LIMIT_S)
    at.it.keeper.shell.post(ev.ClientGone("c"))
    state = at.it.keeper.shell.core.state
    await until(lambda: all(engine.state not in UNDER_WAY for engine in state.residents))


def _nothing_stays_behind(at: Scene) -> None:
    at.it.check()
    state = at.it.keeper.shell.core.state
    assert not state.leases
    assert not list(state.queue)
    assert len(at.it.keeper.catalog.engines) <= 4
    held = {engine.engine_id for engine in state.residents if engine.resident}
    assert held == set(at.it.keeper.shell.supervisor.now)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in CHANGES],
)
def test_a_change_of_a_file_costs_its_own_requests_only(change: str, moment: str) -> None:
    """Each kind of change at each moment."""
    staging = "stage" in moment
    budget = {"prefetch": "stage"} if staging else {}

    async def scenario() -> None:
        async with _scene(change, budget) as (at, kept):
            await MOMENTS[moment](at)
            errors = await _outcomes(at)
            assert not [error for error in errors if isinstance(error, InternalError)]
            assert {type(error) for error in errors} <= {BadModelFile, LoadFailed}
            if change in STAYS_GOOD:
                assert errors == []
            await _looked_at(at)
            _nothing_stays_behind(at)
            await at.it.serve(OTHER)
            for file in kept.iterdir():
                remove(at.it.folder / file.name)
                file.rename(at.it.folder / file.name)
            await at.it.serve(DAMAGED)
            await at.it.serve(OTHER)
            _nothing_stays_behind(at)

    run(scenario)


def test_a_reload_says_which_files_it_read_again() -> None:
    """An equal entry on another file is not called unchanged; the next reload finds nothing new."""

    async def scenario() -> None:
        async with changing("abc") as it:
            _replaced(it.file("a"))
            it.file("b").unlink()
            config = it.keeper.config
            answer = await it.keeper.reload(config)
            assert (answer["reread"], answer["unchanged"]) == (["a", "b"], ["c"])
            assert list(it.keeper.catalog.errors) == ["b"]
            answer = await it.keeper.reload(config)
            assert (answer["reread"], answer["unchanged"]) == ([], ["a", "b", "c"])
            await it.serve("a")

    run(scenario)
