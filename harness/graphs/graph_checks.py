"""The shape of a graph, checked before anything runs, and as a picture. Pure."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from harness.graphs.step import Step
from shim import ConfigError, InvalidRequest


def check_shape(steps: Sequence[Step], inputs: Collection[str]) -> None:
    """Refuse what cannot run.

    Raises:
        ConfigError: no step, a name that stands twice, a need that is neither a step nor an input, a step
            over what it does not need, or a cycle, which is named.
        InvalidRequest: a step's needs are one text and no list.
    """
    names = [step.name for step in steps]
    doubled = sorted(name for name, count in Counter([*names, *inputs]).items() if count > 1)
    if not names:
        raise ConfigError("A graph needs at least one step.", hint="Give a list of `Step`.")
    if doubled:
        raise ConfigError(
            f"Several steps or inputs are called {', '.join(doubled)}.",
            hint="Give each a name of its own.",
            names=doubled,
        )
    known = dict.fromkeys([*names, *inputs])
    for step in steps:
        _check_step(step, known)
    if cycle := _cycle({step.name: step.needs for step in steps}):
        raise ConfigError(
            f"The graph's steps wait for each other: {' -> '.join(cycle)}.",
            hint="Take one of these needs out; what is done several times is a function in one step.",
            cycle=cycle,
        )


def check_inputs(wanted: Collection[str], given: Collection[str], step: str = "") -> None:
    """Refuse a run whose inputs are not the graph's, or a step whose needs are not its sub-graph's.

    Raises:
        InvalidRequest: inputs are missing or unknown; the error names them.
    """
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if not missing and not unknown:
        return
    parts = [f"misses {', '.join(missing)}"] * bool(missing)
    parts += [f"has no {', '.join(unknown)}"] * bool(unknown)
    whose = f"sub-graph of the step {step}" if step else "graph"
    hint = "The step's needs are the sub-graph's inputs, by name. " if step else ""
    raise InvalidRequest(
        f"The {whose} {' and '.join(parts)}.",
        hint=f"{hint}Its inputs are: {', '.join(sorted(wanted)) or 'none'}.",
        missing=missing,
        unknown=unknown,
    )


def mermaid(steps: Iterable[Step], inputs: Iterable[str]) -> str:
    """The graph as Mermaid text: inputs round, conditions diamonds, maps doubled, sub-graphs framed."""
    lines = [f"{_id(name)}([{_label(name)}])" for name in inputs]
    nodes, edges = _drawn(list(steps), {name: _id(name) for name in inputs}, "")
    return "graph TD\n" + "".join(f"    {line}\n" for line in [*lines, *nodes, *edges])


def _drawn(
    steps: Sequence[Step], sources: Mapping[str, str], frame: str
) -> tuple[list[str], list[str]]:
    """The lines of steps and of what they need; `sources` are the ids of the inputs."""
    ids = {**sources, **{step.name: frame + _id(step.name) for step in steps}}
    nodes, edges = list[str](), list[str]()
    for step in steps:
        own = ids[step.name]
        if callable(step.run):
            left, right = _brackets(step)
            nodes.append(f"{own}{left}{_label(step.name, step.models)}{right}")
            edges += [f"{ids[n]} {_arrow(step, n)} {own}" for n in step.needs]
            continue
        inside, within = _drawn(step.run.steps, {n: ids[n] for n in step.needs}, f"{own}_")
        used = {ids[n] for inner in step.run.steps for n in inner.needs if n in step.needs}
        nodes += [
            f"subgraph {own}[{_label(_titled(step))}]",
            *(f"    {one}" for one in inside),
            "end",
        ]
        # What a step inside takes is drawn to it; the rest goes to the frame.
        edges += within
        edges += [f"{ids[n]} {_arrow(step, n)} {own}" for n in step.needs if ids[n] not in used]
    return nodes, edges


def _arrow(step: Step, need: str) -> str:
    return "-->|each|" if need == step.over else "-->"


def _titled(step: Step) -> str:
    each = f", for each of {step.over}" if step.over is not None else ""
    return f"{step.name}{each}{', on a condition' if step.when is not None else ''}"


def _check_step(step: Step, known: Collection[str]) -> None:
    for need in step.needs:
        if need not in known:
            near = difflib.get_close_matches(need, known, 1)
            raise ConfigError(
                f"The step {step.name} needs {need!r}, which is neither a step nor an input.",
                hint=f"Is {near[0]!r} meant?" if near else f"There are: {', '.join(known)}.",
                step=step.name,
            )
    if step.over is not None and step.over not in step.needs:
        raise ConfigError(
            f"The step {step.name} runs over {step.over!r}, which it does not need.",
            hint=f"Its needs are: {', '.join(step.needs) or 'none'}.",
            step=step.name,
        )


def _cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of a cycle, the first again at the end; empty without one."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]  # each waits for the next
    return []


def _brackets(step: Step) -> tuple[str, str]:
    if step.when is not None:
        return "{", "}"
    if step.over is not None:
        return "[[", "]]"
    return "[", "]"


def _id(name: str) -> str:
    """A name without Mermaid's own signs; different names stay different."""
    return "n" + "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}_" for c in name)


def _label(name: str, models: Sequence[str] = ()) -> str:
    """A name in quotes, over its models. Mermaid ends a node at a quote, a statement at a line break."""
    return f'"{"<br/>".join(filter(None, [_shown(name), _shown(", ".join(models))]))}"'


def _shown(text: str) -> str:
    signs = {"#": "#35;", '"': "#quot;", "<": "#lt;"}
    shown = " ".join("".join(signs.get(sign, sign) for sign in text).split())
    return "".join(sign if sign.isprintable() else "?" for sign in shown)
