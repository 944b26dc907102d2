"""Which stages wait for which, and which may start now: pure, without threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from shim import ConfigError


class Node(Protocol):
    """What the graph needs to know of a stage."""

    @property
    def name(self) -> str:
        """Different for every node."""
        ...

    @property
    def after(self) -> Sequence[Node] | None:
        """The nodes that this one waits for; None: the one before it in the list."""
        ...


Needs = Mapping[str, frozenset[str]]
"""For each name, in the order of the list: all nodes that end before it starts, not only the nearest."""


def needs_of(nodes: Sequence[Node]) -> Needs:
    """The nodes that each node waits for, directly or through another node.

    A node may only name earlier nodes. So the order of the list is topological, and there is no cycle.

    Raises:
        ConfigError: a node names itself, a later node, or a node that is not in the list.
    """
    needs: dict[str, frozenset[str]] = {}
    for position, node in enumerate(nodes):
        earlier = nodes[:position]
        direct = earlier[-1:] if node.after is None else node.after
        for other in direct:
            if not any(other is known for known in earlier):
                raise _misplaced(node, other, nodes)
        needs[node.name] = frozenset().union(
            *({other.name} | needs[other.name] for other in direct)
        )
    return needs


def _misplaced(node: Node, other: Node, nodes: Sequence[Node]) -> ConfigError:
    listed = any(other is known for known in nodes)
    where = "does not come before it in the list" if listed else "is not in the pipeline"
    return ConfigError(
        f"Stage {node.name} waits for stage {other.name}, which {where}.",
        hint="List every stage once, behind the stages that it waits for.",
    )


class GraphProgress:
    """How far one input is: which nodes wait, which run and which are done."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._started: set[str] = set()
        self._done: set[str] = set()

    @property
    def running(self) -> list[str]:
        """The nodes that were started and are not done, in the order of the list."""
        return [name for name in self._needs if name in self._started - self._done]

    @property
    def waiting(self) -> list[str]:
        """The nodes that were not started, in the order of the list."""
        return [name for name in self._needs if name not in self._started]

    @property
    def finished(self) -> bool:
        """Whether all nodes are done."""
        return len(self._done) == len(self._needs)

    def start(self) -> list[str]:
        """The nodes whose needs are all done, in the order of the list. They run from now on."""
        ready = [name for name in self.waiting if self._needs[name] <= self._done]
        self._started.update(ready)
        return ready

    def finish(self, name: str) -> None:
        """Note that a running node is done."""
        self._done.add(name)
