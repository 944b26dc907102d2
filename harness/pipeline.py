"""Pipelines: every input goes through stages, in a row or side by side, each a span on the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

from harness.stage_order import GraphProgress, needs_of
from harness.workers import Workers
from shim import (
    ConfigError,
    EmbeddingReply,
    InvalidRequest,
    Plan,
    Reply,
    Shim,
    UnknownModel,
    default_shim,
)
from shim.replies import Answer
from traces import current_run

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R", bound=Answer)

INPUTS_AHEAD = 4
"""How many inputs after the current one have their stages declared as well."""

Messages = Sequence[Mapping[str, Any]] | str


@dataclass(frozen=True, slots=True, eq=False)
class Stage(Generic[T]):
    """One step: its name, its model, its function, and the stages that it waits for.

    `run` gets a `StageContext` and returns the stage's result. `after` names stages that come earlier in
    the list: None stands for the stage just before this one, `()` for no stage. Stages that do not wait
    for one another run side by side, on threads.
    """

    name: str
    model: str
    run: Callable[[StageContext], T]
    after: tuple[Stage[Any], ...] | None = None


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
    _lock: Lock = field(default_factory=Lock, repr=False)

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
        with self._lock:
            self.replies.append(StageReply(self.stage, reply))
        return reply


class Pipeline:
    """Stages in a row, or a graph of stages where a stage says what it comes `after`.

    Args:
        stages: at least one; their names are different.
        shim: the shim that has the models; without it the default shim.

    Raises:
        ConfigError: there is no stage, two stages have the same name, or a stage waits for a stage
            that does not come before it in the list.
        UnknownModel: a stage's model is not configured.
    """

    def __init__(self, stages: Sequence[Stage[Any]], shim: Shim | None = None) -> None:
        self.stages = tuple(stages)
        self.shim = shim or default_shim()
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"The pipeline's stages are {names}; at least one is needed, and each needs a "
                "name of its own."
            )
        for stage in self.stages:
            self._check_model(stage)
        self._needs = needs_of(self.stages)

    def run(self, inputs: Iterable[Any]) -> list[ItemResult]:
        """The results of all inputs, in their order. The first failure ends the run.

        Stages that run beside a failing stage are waited for. No further stage starts.

        Raises:
            KeepwarmError: as `Shim.chat`. Any other exception that a stage raises passes through.
        """
        return list(self.iterate(inputs))

    def iterate(self, inputs: Iterable[Any]) -> Iterator[ItemResult]:
        """As `run`, but each result comes as soon as it is there.

        The models of coming stages are declared (`Shim.plan`), so that the next model is made ready
        while the current one works. Stages of coming inputs are declared where `inputs` has a length.
        """
        count = len(inputs) if isinstance(inputs, Sized) else 0
        plan = self.shim.plan()
        try:
            for index, item in enumerate(inputs):
                yield self._run_one(index, item, max(0, count - index - 1), plan)
        finally:
            plan.close()

    def _run_one(self, index: int, item: Any, further: int, plan: Plan) -> ItemResult:
        stages = {stage.name: stage for stage in self.stages}
        ahead = [stage.model for stage in self.stages] * min(further, INPUTS_AHEAD)
        progress, results = GraphProgress(self._needs), dict[str, Any]()
        replies, lock = list[StageReply](), Lock()

        def work(name: str) -> Callable[[], Any]:
            stage = stages[name]
            known = {
                earlier: results[earlier] for earlier in stages if earlier in self._needs[name]
            }
            context = StageContext(self.shim, name, stage.model, index, item, known, replies, lock)
            return partial(_perform, stage, context, plan)

        with Workers() as workers:
            while not progress.finished:
                starting = progress.start()
                left = [*progress.running, *progress.waiting]
                plan.declare([*(stages[name].model for name in left), *ahead])
                done, result = workers.next_done({name: work(name) for name in starting})
                progress.finish(done)
                results[done] = result
        return ItemResult(index, item, {name: results[name] for name in stages}, tuple(replies))

    def _check_model(self, stage: Stage[Any]) -> None:
        known = self.shim.config.models
        if stage.model not in known:
            raise UnknownModel(
                f"Stage {stage.name} asks for a model called {stage.model!r}.",
                hint=f"Configured are: {', '.join(sorted(known)) or 'none'}.",
                model=stage.model,
            )


def _perform(stage: Stage[T], context: StageContext, plan: Plan) -> T:
    with _span(stage, context.index), plan.current():
        return stage.run(context)


def _span(stage: Stage[Any], index: int) -> AbstractContextManager[object]:
    run = current_run()
    if run is None:
        return nullcontext()
    return run.span(stage.name, model=stage.model, item=index)


def _result_of(stage: Stage[T], results: Mapping[str, Any]) -> T:
    if stage.name not in results:
        raise InvalidRequest(
            f"Stage {stage.name} has no result here.",
            hint=f"Stages with results are: {', '.join(results) or 'no stage yet'}.",
        )
    result: T = results[stage.name]
    return result
