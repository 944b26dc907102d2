"""`Graph`: steps that wait for one another, run side by side as far as slots and bytes allow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

from harness.given import a_count, a_file, a_function, a_list, a_table, an_object
from harness.graphs.graph_checks import check_inputs, check_shape, mermaid
from harness.graphs.graph_run import Finished, GraphRun, ModelGate, run_to_end, to_end
from harness.graphs.journal import Journal
from harness.graphs.outcome import GraphResult, Outcome
from harness.graphs.step import Step
from harness.progress_bar import progress_bar
from shim import ConfigError, Shim, default_shim

AT_ONCE: Final = 32
"""Steps and items that work at the same time."""


class Graph:
    """A graph of steps: functions, model calls, sub-graphs, maps over lists, and conditions.

    Args:
        steps: in any order; a step says by name what it needs.
        inputs: the names of the values that a run is given.
        shim: has the models; by default that of the found configuration, which steps of functions alone
            do not need.
        at_once: steps and items that work at the same time.

    Raises:
        ConfigError: the graph cannot run: names, needs, or a cycle.
        InvalidRequest: steps, inputs or needs are one text and no list.
        UnknownModel: a step's model is not configured.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        inputs: Collection[str] = (),
        *,
        shim: Shim | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        self.steps = tuple(a_list("The steps", steps, Step))
        self.inputs = tuple(a_list("The inputs", inputs, str))
        self.at_once = at_once
        an_object("`shim`", shim, (Shim, type(None)))
        a_count("`at_once`", at_once)
        check_shape(self.steps, self.inputs)
        for step in self.steps:
            if isinstance(step.run, Graph):
                check_inputs(step.run.inputs, set(step.needs), step.name)
            else:
                a_function(f"`run` of step {step.name}", step.run, awaited=True)
        self._given_shim = shim
        if shim is not None:
            self._check_models(shim)

    @property
    def models(self) -> list[str]:
        """The models of all steps in their order, those of sub-graphs as well."""
        return [model for step in self.steps for model in models_of(step)]

    def __repr__(self) -> str:
        steps = ", ".join(step.name for step in self.steps)
        return f"Graph({steps}; inputs: {', '.join(self.inputs) or 'none'})"

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        record: Path | str | None = None,
        check: bool = True,
        quiet: bool = False,
    ) -> GraphResult:
        """Run all steps to their ends, from a thread.

        A step that fails does not end the others: those that need it are skipped, with the cause.

        Args:
            inputs: a value for each input.
            record: a new file that keeps each finished step's result, for `resume`.
            check: raise the first failure at the end.
            quiet: show no progress bar. There is none outside a terminal anyway.

        Raises:
            InvalidRequest: the inputs are not the graph's, or the record is there already.
            StepFailed: a step failed; its `result` has what the others finished.
        """
        return run_to_end(self._run(*self._begun(inputs, record), check=check, quiet=quiet))

    async def arun(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        record: Path | str | None = None,
        check: bool = True,
        quiet: bool = False,
    ) -> GraphResult:
        """As `run`, awaited. Cancelling it cancels every step, and gives leases back."""
        return await to_end(self._run(*self._begun(inputs, record), check=check, quiet=quiet))

    def _begun(
        self, inputs: Mapping[str, Any] | None, record: Path | str | None
    ) -> tuple[Mapping[str, Any], Journal | None]:
        given = dict(a_table("The inputs", {} if inputs is None else inputs))
        check_inputs(self.inputs, given)
        if record is None:
            return given, None
        return given, Journal.begin(a_file("`record`", record), self.steps, given)

    def resume(self, record: Path | str, *, check: bool = True, quiet: bool = False) -> GraphResult:
        """Go on with a run from its record: what it has is not run again.

        Raises:
            InvalidRequest: the file is no record of this graph.
            StepFailed: as `run`.
        """
        return run_to_end(self._run(*self._resumed(record), check=check, quiet=quiet))

    async def aresume(
        self, record: Path | str, *, check: bool = True, quiet: bool = False
    ) -> GraphResult:
        """As `resume`, awaited."""
        return await to_end(self._run(*self._resumed(record), check=check, quiet=quiet))

    def _resumed(self, record: Path | str) -> tuple[Mapping[str, Any], Journal]:
        journal = Journal.load(a_file("`record`", record), self.steps)
        return journal.inputs, journal

    def draw(self) -> str:
        """The graph as Mermaid text, which many Markdown readers show as a picture."""
        return mermaid(self.steps, self.inputs)

    async def _run(
        self, inputs: Mapping[str, Any], journal: Journal | None, *, check: bool, quiet: bool
    ) -> GraphResult:
        shim = self._given_shim or self._found_shim()
        self._check_models(shim)
        left = {step.name: step for step in self.steps}
        coming = uses_of(self.steps)
        async with shim.plan(_order(self.steps, coming), any_order=True) as plan:
            gate = ModelGate(shim, plan, coming)
            with self._shown(left, gate, quiet=quiet) as finished, journal or nullcontext():
                result = await GraphRun(self, inputs, gate, journal, finished).result()
        if check:
            result.check()
        return result

    @contextmanager
    def _shown(self, left: dict[str, Step], gate: ModelGate, *, quiet: bool) -> Iterator[Finished]:
        with progress_bar(_under_way(left), len(self.steps), quiet=quiet) as advance:

            async def finished(name: str, outcome: Outcome) -> None:
                step = left.pop(name, None)
                if step is None:
                    return
                advance(1, _under_way(left))
                # What is left of its uses no request will consume; the request of one that failed may
                # not have consumed its own.
                if gate.coming.pop(name) or (outcome.state == "failed" and models_of(step)):
                    await gate.plan.adeclare(_order(list(left.values()), gate.coming))

            yield finished

    def _found_shim(self) -> Shim:
        try:
            return default_shim()
        except ConfigError:
            if self.models:
                raise
            return Shim({})

    def _check_models(self, shim: Shim) -> None:
        for model in self.models:
            shim.config.entry(model)


def _under_way(left: Mapping[str, Step]) -> str:
    """The steps that work or wait for their turn, as a bar names them."""
    waited_for = [name for name, step in left.items() if not left.keys() & set(step.needs)]
    return ", ".join(waited_for) or "done"


def models_of(step: Step) -> Sequence[str]:
    """The models that a step uses, in the order of their uses."""
    return step.run.models if isinstance(step.run, Graph) else step.models


def uses_of(steps: Sequence[Step]) -> dict[str, list[str]]:
    """The models that each step will use, by its name."""
    return {step.name: list(models_of(step)) for step in steps}


def _order(steps: Sequence[Step], coming: Mapping[str, Sequence[str]]) -> list[str]:
    """The `coming` uses in the order in which turns start them: level by level, each model's together.

    Of two steps on one level, neither waits for the other.
    """
    needs = {step.name: step.needs for step in steps}
    levels = dict[str, int]()
    for name in TopologicalSorter(needs).static_order():
        # Of what is no step, as an input or a step that is done, nothing waits.
        if name in needs:
            levels[name] = 1 + max([levels[n] for n in needs[name] if n in needs], default=0)
    uses = [(levels[step.name], model) for step in steps for model in coming[step.name]]
    first = dict[tuple[int, str], int]()
    for number, use in enumerate(uses):
        first.setdefault(use, number)
    return [model for _, model in sorted(uses, key=lambda use: (use[0], first[use]))]
