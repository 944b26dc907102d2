"""What a command enters to ask a model: a client, a run's trace, a line that says what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from backends.kinds import Verb
from shim.calls.own_run import configured_run
from shim.cli.console.chosen_model import ChosenModel
from shim.cli.console.output import StatusLine
from shim.cli.console.progress import WaitingLine, fetch_first
from shim.cli.console.stopping import asked_again
from shim.client import Shim
from shim.config import Config, ModelEntry
from shim.config.verbs import cannot, verbs_of
from traces import RunTrace

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AtModel:
    """A client beside a model; its file is here. `waiting` tells on `line` what a request waits for."""

    shim: Shim
    model: str
    entry: ModelEntry
    line: StatusLine
    waiting: WaitingLine

    def ask(self, question: Callable[[Shim, str], _T]) -> _T:
        """What the model answers. Ctrl-Z gives its lease back, and asks again when it is continued."""

        def once() -> _T:
            return question(self.shim, self.model)

        return once() if self.entry.remote else asked_again(once, self.line.clear)


def brought(chosen: ChosenModel, line: StatusLine, verb: Verb | None) -> ChosenModel:
    """A model as the running keeper has it; a file that is not here yet is downloaded, visibly.

    Args:
        chosen: the model.
        line: says what is waited for.
        verb: what it is asked for; None for no request.

    Raises:
        InvalidRequest: the model does not do that. Nothing was downloaded or started.
    """
    if verb is not None and verb not in verbs_of(chosen.entry):
        raise cannot(chosen.config, chosen.model, verb)
    chosen = chosen.taken_in(line)
    fetch_first(line, chosen.entry)
    return chosen


@contextmanager
def at_model(chosen: ChosenModel, verb: Verb | None = None) -> Iterator[AtModel]:
    """A client at a model that a command was given, as `brought`; a request is a run on a trace."""
    line = StatusLine()
    chosen = brought(chosen, line, verb)
    config, model, entry = chosen.config, chosen.model, chosen.entry
    with (
        Shim(config, inline=False) as shim,
        nullcontext() if verb is None else traced(config, verb),
        WaitingLine(line, model, shim.config, shim.runtime) as waiting,
    ):
        yield AtModel(shim, model, entry, line, waiting)


def traced(config: Config, command: str) -> AbstractContextManager[RunTrace | None]:
    """What to enter around a command: a run's trace when `[trace]` asks for it."""
    section = config.trace
    return configured_run(section, f"keepwarm {command}") if section.enabled else nullcontext()
