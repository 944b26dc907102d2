"""Layers with recurrent state. Source: `src/models/mamba-base.cpp`, `src/llama-graph.cpp` (`build_rs`)."""

from __future__ import annotations

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.tensors import (
    F32,
    Dims,
    GraphTensor,
    dims,
    graph_input,
    like,
    made,
    reshape,
    strides,
    transpose,
    view,
)


class StateBlocks:
    """Builds such layers into the graph of `blocks`; all slots go through them together."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.slots = blocks.args.slots
        self.each = blocks.tokens // self.slots
        self._ids = graph_input(self.slots, F32)
        self.main = view(self._ids, dims(self.slots), self._ids.nb)
        self._extra = view(self._ids, dims(0), self._ids.nb)

    def mamba(self, source: GraphTensor) -> GraphTensor:
        """`build_mamba_layer`."""
        b, s = self.blocks, self.blocks.shape
        inner, slots, each = s.ssm_inner, self.slots, self.each
        convolution = self.convolution_state(inner)
        joined = b.mat_mul(2 * inner, reshape(source, s.n_embd, each, slots))
        wide = dims(inner, each, slots)
        x = self.convolved(view(joined, wide, joined.nb), convolution)
        small = b.mat_mul(s.ssm_dt_rank + 2 * s.ssm_state, x)
        rank = dims(s.ssm_dt_rank, each, slots)
        dt = made("cont", rank, view(small, rank, small.nb))
        dt = like("add", b.mat_mul(inner, dt), b.weight)
        state = dims(s.ssm_state, 1, each, slots)
        parts = [view(small, state, by_token(small, s.ssm_state)) for _ in range(2)]
        y = self._scanned(reshape(x, 1, inner, each, slots), dt, parts)
        y = view(y, wide, strides(wide))
        y = like("add", y, like("mul", x, b.weight))
        gate = made("cont", wide, view(joined, wide, joined.nb))
        found = b.mat_mul(s.n_embd, like("glu", gate, y))
        return reshape(found, s.n_embd, b.tokens)

    def mamba2(self, source: GraphTensor, *, normed: bool) -> GraphTensor:
        """`build_mamba2_layer`; `normed` with a norm of its own before the output."""
        b, s = self.blocks, self.blocks.shape
        inner, heads, slots, each = s.ssm_inner, s.ssm_dt_rank, self.slots, self.each
        mixed = inner + 2 * s.ssm_groups * s.ssm_state
        convolution = self.convolution_state(mixed)
        joined = reshape(
            b.mat_mul(inner + mixed + heads, source), inner + mixed + heads, each, slots
        )
        by_head = dims(inner // heads, heads, each, slots)
        part = view(joined, dims(mixed, each, slots), joined.nb)
        convolved = self.convolved(part, convolution)
        x = view(convolved, by_head, by_token(convolved, inner // heads))
        groups = dims(s.ssm_state, s.ssm_groups, each, slots)
        strides_of = by_token(convolved, s.ssm_state)
        parts = [view(convolved, groups, strides_of) for _ in range(2)]
        dt = made(
            "cont", dims(heads, each, slots), view(joined, dims(heads, each, slots), joined.nb)
        )
        y = self._scanned(x, like("add", dt, b.weight), parts)
        y = view(y, by_head, strides(by_head))
        y = like("add", y, like("mul", x, b.weight))
        gate = made("cont", by_head, view(joined, by_head, by_token(joined, inner // heads)))
        y = like("glu", gate, y)
        if normed:
            y = b.norm(reshape(y, inner // s.ssm_groups, s.ssm_groups, each, slots))
        return b.mat_mul(s.n_embd, reshape(y, inner, b.tokens))

    def convolution_state(self, width: int) -> GraphTensor:
        """The last tokens that a convolution over that many channels has seen."""
        kept = self.blocks.shape.convolution_tokens
        return reshape(self.rows(kept * width), kept, width, self.slots)

    def states(self) -> GraphTensor:
        """`build_rs`: one state is cleared in place first."""
        b = self.blocks
        states = view(b.cache, dims(1), b.cache.nb)
        cleared = view(states, dims(1), b.cache.nb)
        b.graph.expand(GraphTensor("scale", cleared.ne, cleared.nb, (cleared,), b.cache))
        return states

    def loaded(self, states: GraphTensor, size: int) -> GraphTensor:
        """The states that are computed with; those of other slots are copied (there are none)."""
        b = self.blocks
        b.graph.expand(states)
        others = made("get_rows", dims(size, 0), view(b.cache, dims(1), b.cache.nb), self._extra)
        self.saved(others)
        return states

    def saved(self, states: GraphTensor) -> None:
        """New states, written back."""
        b = self.blocks
        target = view(b.cache, dims(1), b.cache.nb)
        b.graph.expand(GraphTensor("cpy", target.ne, target.nb, (states, target), b.cache))

    def short_convolution(self, source: GraphTensor) -> GraphTensor:
        """`build_shortconv_block` (`src/models/lfm2.cpp`)."""
        b, slots, each = self.blocks, self.slots, self.each
        width = b.shape.n_embd
        wide = dims(width, each, slots)
        joined = b.mat_mul(3 * width, reshape(source, width, each, slots))
        parts = [view(joined, wide, joined.nb) for _ in range(3)]
        product = like("mul", parts[0], parts[1])
        both = self.remembered(product, self.convolution_state(width))
        found = made("ssm_conv", wide, both, b.weight)
        found = b.mat_mul(width, like("mul", parts[2], found))
        return reshape(found, width, b.tokens)

    def convolved(self, source: GraphTensor, convolution: GraphTensor) -> GraphTensor:
        """The convolution over the last tokens of the state and those of the batch."""
        both = self.remembered(source, convolution)
        found = made("ssm_conv", dims(*source.ne[:3]), both, self.blocks.weight)
        return like("unary", like("add", found, self.blocks.weight))

    def remembered(self, source: GraphTensor, convolution: GraphTensor) -> GraphTensor:
        """The last tokens and those of the batch, by channel; the new last ones are written back."""
        width, each, slots = source.ne[:3]
        kept = convolution.ne[0]
        both = made("concat", dims(kept + each, width, slots), convolution, transpose(source))
        self.saved(view(both, dims(kept, width, slots), both.nb))
        return both

    def rows(self, size: int) -> GraphTensor:
        """`build_rs`: the states of the slots, copied."""
        found = made("get_rows", dims(size, self.slots), self.states(), self.main)
        return self.loaded(found, size)

    def _scanned(self, x: GraphTensor, dt: GraphTensor, parts: list[GraphTensor]) -> GraphTensor:
        """The state-space part: results of every token, and the new states."""
        b, s = self.blocks, self.blocks.shape
        size = s.ssm_state * s.ssm_inner
        states = view(self.states(), dims(1), b.cache.nb)
        found = made(
            "ssm_scan", dims(s.ssm_inner * b.tokens + size * self.slots),
            states, x, dt, b.weight, *parts, self.main,
        )  # fmt: skip
        self.loaded(found, size)
        self.saved(view(found, dims(size * self.slots), found.nb))
        return found


def by_token(source: GraphTensor, width: int) -> Dims:
    """Strides of a part of each token's row: groups of that width, tokens and slots."""
    return (F32, F32 * width, source.nb[1], source.nb[2])
