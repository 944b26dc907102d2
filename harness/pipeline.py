"""Pipelines: every input goes through stages, in a row or side by side, each a span on the trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from harness.given import a_function, a_list, a_text, an_object
from harness.graphs.graph import Graph
from harness.graphs.graph_run import GraphRun, ModelGate, run_to_end, step_span
from harness.graphs.outcome import Outcome
from harness.graphs.step import Messages, Step, StepContext
from shim import (
    Cancelled,
    ConfigError,
    EmbeddingReply,
    InvalidRequest,
    Plan,
    Reply,
    Shim,
    default_shim,
)
from shim.replies import Answer

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R", bound=Answer)

INPUTS_AHEAD = 4
"""How many inputs after the current one have their stages declared as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage(Generic[T]):
    """One step: its name, its model, its function, and the stages that it waits for.

    `run` gets a `StageContext` and returns the stage's result. `after` names stages that come earlier in
    the list: None stands for the stage just before this one, `()` for no stage. Stages that do not wait
    for one another run side by side, on threads.

    Raises:
        InvalidRequest: an argument is of another type.
    """

    name: str
    model: str
    run: Callable[[StageContext], T]
    after: tuple[Stage[Any], ...] | None = None

    def __post_init__(self) -> None:
        a_text("The name of a stage", self.name)
        a_text(f"The model of stage {self.name}", self.model)
        a_function(f"`run` of stage {self.name}", self.run)
        if self.after is not None:
            a_list(f"The stages that {self.name} comes after", self.after, Stage)


@dataclass(frozen=True, slots=True)
class StageReply:
    """What a model answered in a stage. A stage that asks several times has several of them."""

    stage: str
    reply: Answer


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The outcome of one input: every stage's result, and every reply in the order of arrival."""

    index: int
    input: Any
    results: Mapping[str, Any]
    replies: tuple[StageReply, ...]

    def result(self, stage: Stage[T]) -> T:
        """The result of a stage.

        Raises:
            InvalidRequest: the stage does not belong to this pipeline.
        """
        return _result_of(stage, self.results)


@dataclass(slots=True)
class StageContext:
    """What a stage works with: the input, the results that it waited for, and its own model."""

    shim: Shim
    stage: str
    model: str
    index: int
    input: Any
    results: Mapping[str, Any]
    replies: list[StageReply] = field(default_factory=list)

    def result(self, stage: Stage[U]) -> U:
        """The result, for the same input, of a stage that this one waited for by `after`.

        A stage that it waited for through another stage counts as well.

        Raises:
            InvalidRequest: this stage does not wait for that one, even if that one happens to be done.
        """
        return _result_of(stage, self.results)

    def chat(self, messages: Messages, **options: Any) -> Reply:
        """`Shim.chat` with the stage's model; the reply is kept with the item's result."""
        return self.keep(self.shim.chat(self.model, messages, **options))

    def embed(self, texts: Sequence[str] | str, **options: Any) -> EmbeddingReply:
        """`Shim.embed` with the stage's model; the reply is kept with the item's result."""
        return self.keep(self.shim.embed(self.model, texts, **options))

    def keep(self, reply: R) -> R:
        """Keep the reply of another call of `shim` (`transcribe`, `speak`, ...) with the item's result."""
        self.replies.append(StageReply(self.stage, reply))
        return reply


class Pipeline:
    """Stages in a row, or a graph of stages where a stage says what it comes `after`.

    A stage beside which no other can run has the caller's thread. The others are steps of a `Graph`.

    Args:
        stages: at least one; their names are different.
        shim: the shim that has the models; without it the default shim.

    Raises:
        ConfigError: there is no stage, two stages have the same name, or a stage waits for a stage
            that does not come before it in the list.
        UnknownModel: a stage's model is not configured.
    """

    def __init__(self, stages: Sequence[Stage[Any]], shim: Shim | None = None) -> None:
        self.stages = tuple(a_list("The stages", stages, Stage))
        self.shim = an_object("`shim`", shim, (Shim, type(None))) or default_shim()
        self._needs = needs_of(self.stages)
        Graph([Step(one.name, _no_work, (), one.model) for one in self.stages], shim=self.shim)
        self._legs = legs_of(self.stages, self._needs)

    def run(self, inputs: Iterable[Any]) -> list[ItemResult]:
        """The results of all inputs, in their order. The first failure ends the run.

        Stages that run beside a failing stage are waited for. No further stage starts.

        Raises:
            InvalidRequest: the inputs are one text and no list.
            KeepwarmError: as `Shim.chat`. Any other exception that a stage raises passes through.
        """
        return list(self.iterate(inputs))

    def iterate(self, inputs: Iterable[Any]) -> Iterator[ItemResult]:
        """As `run`, but each result comes as soon as it is there.

        The models of coming stages are declared (`Shim.plan`), so that the next model is made ready
        while the current one works. Stages of coming inputs are declared where `inputs` has a length.
        """
        a_list("The inputs", inputs)
        count = len(inputs) if isinstance(inputs, Sized) else 0
        beside = any(len(leg) > 1 for leg in self._legs)
        with closing(self.shim.plan(any_order=beside)) as plan:
            for index, item in enumerate(inputs):
                yield self._run_one(index, item, max(0, count - index - 1), plan)

    def _run_one(self, index: int, item: Any, further: int, plan: Plan) -> ItemResult:
        ahead = [stage.model for stage in self.stages] * min(further, INPUTS_AHEAD)
        passage = _Passage(self, index, item, plan, ahead)
        plan.declare(passage.coming())
        for leg in self._legs:
            if len(leg) > 1:
                passage.run_side_by_side(leg)
                continue
            with step_span(leg[0].name, leg[0].model, index, plan), plan.current():
                passage.results[leg[0].name] = passage.run(leg[0])
            if passage.is_under_way:
                plan.declare(passage.coming())
        results = {stage.name: passage.results[stage.name] for stage in self.stages}
        return ItemResult(index, item, results, tuple(passage.replies))


class _Passage:
    """One input on its way through the stages."""

    def __init__(
        self, pipeline: Pipeline, index: int, item: Any, plan: Plan, ahead: Sequence[str]
    ) -> None:
        self._pipeline, self._index, self._item = pipeline, index, item
        self._plan, self._ahead = plan, ahead
        self.results = dict[str, Any]()
        self.replies = list[StageReply]()
        self._failure: BaseException | None = None
        self._threads = list[threading.Thread]()

    @property
    def is_under_way(self) -> bool:
        """Whether stages are left."""
        return len(self.results) < len(self._pipeline.stages)

    def coming(self) -> list[str]:
        """The models of coming uses: stages that run or may start, those that wait, further inputs."""
        left = [stage for stage in self._pipeline.stages if stage.name not in self.results]
        waits = [not self._pipeline._needs[stage.name] <= self.results.keys() for stage in left]
        ordered = [s for now in (False, True) for s, w in zip(left, waits, strict=True) if w == now]
        return [*(stage.model for stage in ordered), *self._ahead]

    def run(self, stage: Stage[T]) -> T:
        """One stage's result, on this thread."""
        needs, pipeline = self._pipeline._needs[stage.name], self._pipeline
        known = {s.name: self.results[s.name] for s in pipeline.stages if s.name in needs}
        context = StageContext(
            pipeline.shim, stage.name, stage.model, self._index, self._item, known, self.replies
        )
        return stage.run(context)

    def run_side_by_side(self, leg: Sequence[Stage[Any]]) -> None:
        """Stages as steps of a graph. After a failure none starts; those that run are waited for."""
        names, needs = {stage.name for stage in leg}, self._pipeline._needs
        steps = [
            Step(s.name, partial(self._run_beside, s), tuple(needs[s.name] & names), s.model)
            for s in leg
        ]
        gate = ModelGate(self._pipeline.shim, self._plan, {})
        graph = Graph(steps, shim=gate.shim, at_once=len(leg))
        run = GraphRun(graph, {}, gate, None, self._finished, index=self._index)
        try:
            run_to_end(run.result())
        finally:
            for thread in self._threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _run_beside(self, stage: Stage[T], _context: StepContext) -> T:
        self._threads.append(threading.current_thread())
        if self._failure is not None:
            raise Cancelled(f"Stage {stage.name} did not start: another one failed.")
        try:
            return self.run(stage)
        except BaseException as error:
            self._failure = self._failure or error
            raise

    async def _finished(self, name: str, outcome: Outcome) -> None:
        if outcome.state == "done":
            self.results[name] = outcome.value
            if self.is_under_way:
                await self._plan.adeclare(self.coming())


def _result_of(stage: Stage[T], results: Mapping[str, Any]) -> T:
    if stage.name not in results:
        raise InvalidRequest(
            f"Stage {stage.name} has no result here.",
            hint=f"Stages with results are: {', '.join(results) or 'no stage yet'}.",
        )
    result: T = results[stage.name]
    return result


Needs = Mapping[str, frozenset[str]]
"""For each stage, in the order of the list: all stages that end before it starts, not only the nearest."""


def needs_of(stages: Sequence[Stage[Any]]) -> Needs:
    """The stages that each stage waits for, directly or through another one.

    A stage may only name earlier ones. So the order of the list is topological, and there is no cycle.

    Raises:
        ConfigError: a stage names itself, a later one, or one that is not in the list.
    """
    needs: dict[str, frozenset[str]] = {}
    for position, stage in enumerate(stages):
        earlier = stages[:position]
        direct = earlier[-1:] if stage.after is None else stage.after
        for other in direct:
            if not any(other is known for known in earlier):
                listed = any(other is known for known in stages)
                where = (
                    "does not come before it in the list" if listed else "is not in the pipeline"
                )
                raise ConfigError(
                    f"Stage {stage.name} waits for stage {other.name}, which {where}.",
                    hint="List every stage once, behind the stages that it waits for.",
                )
        needs[stage.name] = frozenset().union(*({o.name} | needs[o.name] for o in direct))
    return needs


def legs_of(stages: Sequence[Stage[Any]], needs: Needs) -> list[list[Stage[Any]]]:
    """Stages beside which no other can run, each by itself, and between them those that can, together."""
    legs, joins = list[list[Stage[Any]]](), False
    for position, stage in enumerate(stages):
        alone = len(needs[stage.name]) == position and all(
            stage.name in needs[later.name] for later in stages[position + 1 :]
        )
        if joins and not alone:
            legs[-1].append(stage)
        else:
            legs.append([stage])
        joins = not alone
    return legs


def _no_work(_context: StepContext) -> None:
    """Stands in a graph that is only checked."""
