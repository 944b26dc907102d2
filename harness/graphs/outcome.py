"""How a graph's run ended: each step's value, its failure, or why it was skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from harness.given import a_text
from shim import InvalidRequest, OutsideError
from traces.checked import shown

_SHOWN: Final = 60


class StepFailed(OutsideError):
    """A step of a graph failed, or was skipped because of one. Facts: `step`, `cause`.

    The exception of the step itself is the `__cause__`. `result` has what the other steps finished.
    """

    result: GraphResult | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step's end. `because` says why it was skipped, or names the failed step."""

    state: Literal["done", "failed", "skipped"]
    value: Any = None
    error: BaseException | None = None
    because: str = ""
    attempts: int = 0
    seconds: float = 0.0
    resumed: bool = False

    @property
    def said(self) -> str:
        """The value, the error or the cause, as a line shows it."""
        if self.state == "done":
            return f"{'resumed: ' * self.resumed}{_in_a_line(shown(self.value))}"
        if self.error is not None:
            return _in_a_line(f"{type(self.error).__name__}: {self.error}")
        return _in_a_line(self.because)


@dataclass(frozen=True, slots=True)
class GraphResult:
    """The outcomes of all steps by name. `result["name"]` is a step's value."""

    outcomes: Mapping[str, Outcome]
    seconds: float = 0.0
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """A step's value.

        Raises:
            StepFailed: it has none, because it failed or was skipped.
            InvalidRequest: the graph has no such step.
        """
        outcome = self.outcomes.get(a_text("The name of a step", name))
        if outcome is None:
            raise InvalidRequest(
                f"The graph has no step {name!r}.", hint=f"It has: {', '.join(self.outcomes)}."
            )
        if outcome.state == "done":
            return outcome.value
        raise self._failure(name, outcome) from outcome.error

    def __str__(self) -> str:
        """A line for each step: how it ended, its seconds, and what it gave or why it gave nothing."""
        width = max((len(name) for name in self.outcomes), default=0)
        return "\n".join(
            f"{name:<{width}}  {one.state:<7}  {one.seconds:6.2f} s  {one.said}"
            for name, one in self.outcomes.items()
        )

    def __iter__(self) -> Iterator[str]:
        """The names of the steps that have a value, so that `"name" in result` is whether one has."""
        return (name for name, outcome in self.outcomes.items() if outcome.state == "done")

    @property
    def failed(self) -> dict[str, BaseException]:
        """The errors of the steps that failed, by name, in the order of the graph."""
        return {name: o.error for name, o in self.outcomes.items() if o.error is not None}

    @property
    def skipped(self) -> dict[str, str]:
        """Why steps were skipped, by name."""
        return {name: o.because for name, o in self.outcomes.items() if o.state == "skipped"}

    def check(self) -> None:
        """Raise the first failure, if there is one.

        Raises:
            StepFailed: a step failed; its exception is the cause.
        """
        for name, outcome in self.outcomes.items():
            if outcome.state == "failed":
                raise self._failure(name, outcome) from outcome.error

    def _failure(self, name: str, outcome: Outcome) -> StepFailed:
        if outcome.state == "skipped":
            text = f"The step {name} was skipped: {outcome.because}."
        elif isinstance(outcome.error, StepFailed):  # that of a sub-graph, without its hint
            text = f"The step {name} failed: {outcome.error.message}"
        else:
            text = f"The step {name} failed: {type(outcome.error).__name__}: {outcome.error}"
        failure = StepFailed(
            text,
            hint="`result` of this error has what the other steps finished.",
            step=name,
            cause=outcome.because or type(outcome.error).__name__,
        )
        failure.result = self
        return failure


def _in_a_line(text: str) -> str:
    line = " ".join(text[: 4 * _SHOWN].split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
