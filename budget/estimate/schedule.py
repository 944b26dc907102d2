"""Where the nodes of a graph are computed, and which tensors are copied to the other side for that.

Source: `ggml/src/ggml-backend.cpp` (`ggml_backend_sched_split_graph`), for one device beside the CPU, with
every operation possible on both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from budget.estimate.ggml_graph import HOST, UNDECIDED, Graph, Tensor, made

# The tensors that they have beside activations are too small to decide where they are computed.
_UNDECIDING: Final = frozenset({"rope", "flash_attn"})


def scheduled(graph: Graph) -> list[Tensor]:
    """The nodes in order, with the copies of what they take from the other side. Uses the graph up."""
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
    return _with_copies(graph)


def _by_weights(node: Tensor) -> None:
    """Operations go where their weights are, and what is written to a cache where that is."""
    if node.side != UNDECIDED:
        return
    if node.root is not None and node.root.external:
        node.side = node.root.side
    elif node.op not in _UNDECIDING and node.root is None:
        node.side = next((source.side for source in node.src if source.weight), UNDECIDED)


def _spread(nodes: Iterable[Tensor], *, device_only: bool) -> None:
    """Undecided nodes follow the one before."""
    side = UNDECIDED
    for node in nodes:
        if node.side == UNDECIDED:
            node.side = side
        elif device_only and node.side == HOST:
            side = UNDECIDED
        else:
            side = node.side


def _with_copies(graph: Graph) -> list[Tensor]:
    """Each run of nodes on one side begins with the copies that it needs first."""
    found: list[Tensor] = []
    run: list[Tensor] = []
    copied: list[Tensor] = []
    copies: dict[tuple[int, int], Tensor] = {}
    side = next(node.side for node in graph.nodes if node.op != "view")

    def finish() -> None:
        for source in copied:
            # Keeps the source until it is copied.
            found.append(Tensor("", source.ne, source.nb, (source,), source.root or source))
            found.append(copies[id(source), side])
        found.extend(run)
        run.clear()
        copied.clear()

    for node in graph.nodes:
        if node.op != "view":
            if node.side != side:
                finish()
                side = node.side
            node.src = tuple(_here(source, side, copies, copied) for source in node.src)
        run.append(node)
    finish()
    return found


def _here(
    source: Tensor, side: int, copies: dict[tuple[int, int], Tensor], copied: list[Tensor]
) -> Tensor:
    where = source.root.side if source.root is not None else source.side
    if where == side:
        return source
    key = (id(source), side)
    if key not in copies:
        copy = made("", source.ne)
        copy.nb, copy.side = source.nb, side
        copies[key] = copy
        copied.append(source)
    return copies[key]
