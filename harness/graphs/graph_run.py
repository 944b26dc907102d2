"""One run of a graph: a task for each step, which waits for its needs, for its models' turn, and works."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from harness.given import a_list
from harness.graphs.journal import Journal
from harness.graphs.outcome import GraphResult, Outcome
from harness.graphs.own_code import Ended, bounded, holds, in_own_task, is_cancelled, of_function
from harness.graphs.step import OpenCalls, Step, StepContext
from harness.graphs.turns import AskFit, Models, ModelTurns
from harness.on_trace import span
from shim import Plan, Shim
from traces import names

if TYPE_CHECKING:
    from harness.graphs.graph import Graph

Finished = Callable[[str, Outcome], Awaitable[None]]
"""Told of each outcome by the step's name; steps of sub-graphs have their graph's before it."""


class ModelGate:
    """Lets work start in turns of models, on one event loop; sub-graphs and items share it."""

    def __init__(self, shim: Shim, plan: Plan, coming: dict[str, list[str]]) -> None:
        self.shim, self.plan = shim, plan
        self.coming = coming
        """By the steps of the graph itself: the models that each has declared, and not asked yet."""
        self._turns = ModelTurns()
        self._fits: dict[Models, bool] = {}
        self._asking: dict[Models, asyncio.Task[None]] = {}
        self._numbers = itertools.count()
        self._starts: dict[int, asyncio.Event] = {}

    @asynccontextmanager
    async def turn(self, models: Iterable[str]) -> AsyncIterator[None]:
        """Work with these models; inside, they are in use."""
        number = next(self._numbers)
        self._starts[number] = started = asyncio.Event()
        self._turns.wait(number, list(models))
        try:
            self._advance_soon()
            await started.wait()
            yield
        finally:
            del self._starts[number]
            self._turns.done(number)
            self._advance_soon()

    def asks(self, step: str, model: str) -> None:
        """Note a request, which consumes a use. From any thread, also when the step's time is over."""
        with suppress(KeyError, ValueError):
            self.coming[step].remove(model)

    def _advance_soon(self) -> None:
        # Not at once: all work that becomes ready in this pass of the loop is seen together.
        asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        while (found := self._turns.next(self._fits.get)) is not None:
            if isinstance(found, AskFit):
                if found.models not in self._asking:
                    self._asking[found.models] = asyncio.create_task(self._ask(found.models))
                return
            self._starts[found].set()

    async def _ask(self, models: Models) -> None:
        """What the keeper says. Where it cannot say it, its queue decides when the work asks."""
        try:
            self._fits[models] = await asyncio.to_thread(self.shim.fit_together, sorted(models))
        except Exception:  # the work that waits must start, whatever failed
            self._fits[models] = True
        finally:
            del self._asking[models]
        self._advance()


class GraphRun:
    """Runs the steps of one graph with one set of inputs."""

    def __init__(
        self, graph: Graph, inputs: Mapping[str, Any], gate: ModelGate, journal: Journal | None,
        finished: Finished, path: str = "", index: int = 0, within: str = "",
    ) -> None:  # fmt: skip
        self._graph, self._inputs, self._gate = graph, dict(inputs), gate
        self._journal, self._finished, self._path = journal, finished, path
        self._known = {} if journal is None else journal.known
        self._index, self._within = index, within
        self._attempts: Counter[str] = Counter()
        self._telling = asyncio.Lock()
        self._outcomes: dict[str, asyncio.Future[Outcome]] = {}
        self._slots = asyncio.Semaphore(graph.at_once)

    async def result(self) -> GraphResult:
        """All outcomes. Cancelling this cancels every step and withdraws its model calls."""
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        self._outcomes = {step.name: loop.create_future() for step in self._graph.steps}
        await _all(self._follow(step) for step in self._graph.steps)
        outcomes = {name: future.result() for name, future in self._outcomes.items()}
        return GraphResult(outcomes, time.perf_counter() - started, self._inputs)

    async def _follow(self, step: Step) -> None:
        values = dict[str, Any]()
        outcome: Outcome | None = None
        for need in step.needs:
            if need in self._inputs:
                values[need] = self._inputs[need]
                continue
            found = await asyncio.shield(self._outcomes[need])
            values[need] = found.value
            if found.state != "done":
                why = found.because or f"{need} failed with {type(found.error).__name__}"
                outcome = outcome or Outcome("skipped", because=why)
        outcome = outcome or await self._outcome(step, values)
        async with self._telling:
            await self._finished(self._path + step.name, outcome)
        self._outcomes[step.name].set_result(outcome)

    async def _outcome(self, step: Step, values: Mapping[str, Any]) -> Outcome:
        key, started = self._path + step.name, time.perf_counter()
        if key in self._known:
            return Outcome("done", self._known[key], resumed=True)
        try:
            if step.when is not None and not await in_own_task(holds, step.when, values):
                return Outcome("skipped", because=f"the condition of {step.name} does not hold")
            value = await self._value(step, values)
            await self._keep(key, value)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            return Outcome(
                "failed", error=error, attempts=self._attempts[step.name],
                because=f"{step.name} failed with {type(error).__name__}",
                seconds=time.perf_counter() - started,
            )  # fmt: skip
        seconds = time.perf_counter() - started
        return Outcome("done", value, attempts=self._attempts[step.name], seconds=seconds)

    async def _value(self, step: Step, values: Mapping[str, Any]) -> Any:
        if step.over is None:
            return await self._tried(step, values, None, self._index)
        items = list(a_list(f"The items of step {step.name} ({step.over})", values[step.over]))

        async def one(index: int, item: Any) -> Any:
            key = f"{self._path}{step.name}[{index}]"
            if key in self._known:
                return self._known[key]
            value = await self._tried(step, values, item, index)
            await self._keep(key, value)
            return value

        return await _all(one(index, item) for index, item in enumerate(items))

    async def _tried(self, step: Step, values: Mapping[str, Any], item: Any, index: int) -> Any:
        """The value of the first try that does not fail."""
        attempt = 0
        while True:
            attempt += 1
            self._attempts[step.name] = max(attempt, self._attempts[step.name])
            asks = partial(self._gate.asks, self._within or step.name)
            calls = OpenCalls(asyncio.get_running_loop(), asks)
            context = StepContext(self._gate.shim, step, values, calls, item, index, attempt)
            try:
                return await self._once(step, context)
            except Exception as error:
                if not step.retry.is_worth(error, attempt):
                    raise
                pause_s = step.retry.pause_after(attempt, error)
            finally:
                calls.close()
            await asyncio.sleep(pause_s)

    async def _once(self, step: Step, context: StepContext) -> Any:
        if not callable(step.run):
            return await bounded(step, self._of_sub_graph(step.run, context))
        async with self._gate.turn(step.models), self._slots:
            models, plan = ", ".join(step.models), self._gate.plan
            name, attempt = self._path + step.name, context.attempt
            with step_span(name, models, context.index, plan, attempt=attempt), plan.current():
                return await bounded(step, in_own_task(of_function, step.run, context))

    async def _of_sub_graph(self, graph: Graph, context: StepContext) -> GraphResult:
        """Its results. Where the step runs over a list, the graph gets one item in the list's place."""
        step, path, values = context.step, self._path + context.step.name, context.values
        if step.over is not None:
            path, values = f"{path}[{context.index}]", {**values, step.over: context.item}
        inputs = {name: values[name] for name in graph.inputs}
        run = GraphRun(
            graph, inputs, self._gate, self._journal, self._finished, f"{path}/", context.index,
            self._within or step.name,
        )  # fmt: skip
        result = await run.result()
        result.check()
        return result

    async def _keep(self, key: str, value: Any) -> None:
        if self._journal is not None:
            await asyncio.to_thread(self._journal.keep, key, value)


async def _all(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all return. The first failure ends the others, and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


_NUMBERS = itertools.count()
_WORKS: WeakKeyDictionary[object, int] = WeakKeyDictionary()
"""A number for each work whose steps are on a trace."""


def step_span(
    name: str, model: str, item: int, work: object, **facts: Any
) -> AbstractContextManager[object]:
    """A step's span on the trace; arrows join the steps of one item in one `work`."""
    facts[names.CHAIN] = f"{_WORKS.setdefault(work, next(_NUMBERS))} {item}"
    return span(name, model=model, item=item, **facts)


async def to_end(work: Coroutine[Any, Any, GraphResult]) -> GraphResult:
    """The result of a run.

    Raises:
        BaseException: an interrupt or an exit that a step raised, after all steps have ended.
    """
    try:
        return await work
    except Ended as ended:
        raise ended.error from None


def run_to_end(work: Coroutine[Any, Any, GraphResult]) -> GraphResult:
    """As `to_end`, from a thread with or without an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        inside = False
    else:
        inside = True
    try:
        if not inside:
            return asyncio.run(work)
        with ThreadPoolExecutor(1, "graph") as pool:
            return pool.submit(copy_context().run, asyncio.run, work).result()
    except Ended as ended:
        raise ended.error from None
