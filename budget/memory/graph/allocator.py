"""The bytes that ggml's graph allocator reserves for a graph, on each side.

Source: `ggml/src/ggml-alloc.c` (`ggml_gallocr_alloc_graph_impl`, `ggml_dyn_tallocr_alloc`): best fit among
the holes, in-place results, and memory given back after the last use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from budget.memory.graph.schedule import scheduled
from budget.memory.graph.tensors import IN_PLACE, ComputeGraph, GraphTensor

_ENDLESS: Final = 1 << 62


class _Memory:
    """Free blocks by address, the last one without an end."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free = [[0, _ENDLESS]]
        self.most = 0

    def aligned(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def take(self, n_bytes: int) -> int:
        size, blocks = self.aligned(n_bytes), self.free
        best, best_size = len(blocks) - 1, _ENDLESS
        for i in range(len(blocks) - 1):
            if size <= blocks[i][1] <= best_size:
                best, best_size = i, blocks[i][1]
        block = blocks[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if not block[1]:
            del blocks[best]
        self.most = max(self.most, offset + size)
        return offset

    def give(self, offset: int, n_bytes: int) -> None:
        size, blocks = self.aligned(n_bytes), self.free
        end = offset + size
        for i, block in enumerate(blocks):
            if block[0] + block[1] == offset:
                block[1] += size
                if i + 1 < len(blocks) and blocks[i + 1][0] == end:
                    block[1] += blocks.pop(i + 1)[1]
                return
            if end == block[0]:
                block[0], block[1] = offset, block[1] + size
                if i and sum(blocks[i - 1]) == offset:
                    blocks[i - 1][1] += blocks.pop(i)[1]
                return
        at = next((i for i, block in enumerate(blocks) if block[0] > offset), len(blocks))
        blocks.insert(at, [offset, size])


class _Allocation:
    def __init__(self, alignments: Mapping[int, int]) -> None:
        self._memories = {side: _Memory(n) for side, n in alignments.items()}

    def run(self, leaves: Sequence[GraphTensor], nodes: Sequence[GraphTensor]) -> dict[int, int]:
        for leaf in leaves:
            self._place(leaf)
        for node in nodes:
            if node.root is not None and node.op:
                node.root.views += 1
            for source in node.src:
                source.children += 1
        for node in nodes:
            self._place(node)
            for source in node.src:
                source.children -= 1
                if not source.children and not source.views:
                    self._release(source)
        return {side: memory.most for side, memory in self._memories.items()}

    def _place(self, tensor: GraphTensor) -> None:
        if tensor.external or tensor.owned or tensor.root is not None:
            return
        tensor.owned = True
        if tensor.op in IN_PLACE and _over_a_source(tensor):
            return
        tensor.offset = self._memories[tensor.side].take(tensor.n_bytes)

    def _release(self, tensor: GraphTensor) -> None:
        root = tensor.root
        if root is None:
            self._free(tensor)
            return
        root.views -= 1
        if not root.views and not root.children:
            self._free(root)

    def _free(self, tensor: GraphTensor) -> None:
        if tensor.owned and not tensor.output:
            self._memories[tensor.side].give(tensor.offset, tensor.n_bytes)
            tensor.owned = False


def _over_a_source(tensor: GraphTensor) -> bool:
    """Whether a source gives its memory; one that is a view never does."""
    for source in tensor.src:
        if not source.owned or source.output or source.children != 1 or source.views:
            continue
        if source.ne == tensor.ne and source.nb == tensor.nb:
            tensor.offset = source.offset
            source.owned = False
            return True
    return False


def reserved_bytes(
    graph: ComputeGraph, alignments: Mapping[int, int], copies: int = 1
) -> dict[int, int]:
    """The sizes of the buffers that hold all of a graph's tensors, by side. Uses the graph up.

    `alignments` are those of the sides' buffers, in bytes; `copies` is for `scheduled`.
    """
    nodes = scheduled(graph, copies)
    return _Allocation(alignments).run(graph.leaves, nodes)
