"""Where the nodes of a graph are computed, and which tensors are copied to the other side for that.

Source: `ggml/src/ggml-backend.cpp` (`ggml_backend_sched_split_graph`), for devices beside the CPU, with
every operation possible on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from budget.memory.graph.tensors import HOST, UNDECIDED, ComputeGraph, GraphTensor, made

# The tensors that they have beside activations are too small to decide where they are computed.
_UNDECIDING: Final = frozenset({"rope", "flash_attn"})


PIPELINE_COPIES: Final = 4
"""Of every tensor that crosses, where devices compute in a pipeline (`GGML_SCHED_MAX_COPIES`)."""


def scheduled(graph: ComputeGraph, copies: int = 1) -> list[GraphTensor]:
    """The nodes in order, with the copies of what they take from other sides. Uses the graph up.

    With several copies (a pipeline) each is made once for the whole graph and never given back; they are
    among the graph's leaves then, those of its inputs first.
    """
    for node in graph.nodes:
        _by_weights(node)
    computed = [node for node in graph.nodes if node.op != "view"]
    _spread(computed, device_only=True)
    _spread(reversed(computed), device_only=True)
    _spread(computed, device_only=False)
    _spread(reversed(computed), device_only=False)
    for node in graph.nodes:
        if node.root is not None and node.side == UNDECIDED:
            node.side = node.root.side
    return _Copies(copies).add(graph)


def _by_weights(node: GraphTensor) -> None:
    """Operations go where their weights are, and what is written to a cache where that is."""
    if node.side != UNDECIDED:
        return
    if node.root is not None and node.root.external:
        node.side = node.root.side
    elif node.op not in _UNDECIDING and node.root is None:
        node.side = next((source.side for source in node.src if source.weight), UNDECIDED)


def _spread(nodes: Iterable[GraphTensor], *, device_only: bool) -> None:
    """Undecided nodes follow the one before."""
    side = UNDECIDED
    for node in nodes:
        if node.side == UNDECIDED:
            node.side = side
        elif device_only and node.side == HOST:
            side = UNDECIDED
        else:
            side = node.side


class _Copies:
    """Adds the copies that each run of nodes on one side begins with."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._made: dict[tuple[int, int], GraphTensor] = {}
        self._kept: list[GraphTensor] = []

    def add(self, graph: ComputeGraph) -> list[GraphTensor]:
        """The nodes with their copies between them; further copies go to the graph's leaves."""
        found: list[GraphTensor] = []
        start, copied = 0, list[GraphTensor]()
        side = next(node.side for node in graph.nodes if node.op != "view")
        for number, node in enumerate(graph.nodes):
            if node.op == "view":
                continue
            if node.side != side:
                self._finish(found, copied, graph.nodes[start:number], side)
                start, side, copied = number, node.side, []
            node.src = tuple(self._here(source, side, copied) for source in node.src)
        self._finish(found, copied, graph.nodes[start:], side)
        if self._count > 1:
            inputs = [leaf for leaf in graph.leaves if leaf.input]
            for leaf in inputs:
                leaf.output = True
                self._kept += (self._copy(leaf, leaf.side) for _ in range(self._count - 1))
            graph.leaves[:0] = self._kept
        return found

    def _finish(
        self,
        found: list[GraphTensor],
        copied: Sequence[GraphTensor],
        nodes: Sequence[GraphTensor],
        side: int,
    ) -> None:
        for source in copied:
            # Keeps the source until it is copied.
            found.append(GraphTensor("", source.ne, source.nb, (source,), source.root or source))
            found.append(self._made[id(source), side])
        found.extend(nodes)

    def _here(self, source: GraphTensor, side: int, copied: list[GraphTensor]) -> GraphTensor:
        where = source.root.side if source.root is not None else source.side
        if where == side:
            return source
        key = (id(source), side)
        if key not in self._made:
            self._made[key] = self._copy(source, side)
            copied.append(source)
            if self._count > 1:
                again = (self._copy(source, side) for _ in range(self._count - 1))
                self._kept += [self._made[key], *again]
        return self._made[key]

    def _copy(self, source: GraphTensor, side: int) -> GraphTensor:
        found = made("", source.ne)
        found.nb, found.side, found.output = source.nb, side, self._count > 1
        return found
