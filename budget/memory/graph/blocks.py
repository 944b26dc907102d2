"""The blocks that llama.cpp builds its graphs of: norms, attention, feed-forward, the end.

Source: `src/llama-graph.cpp` (the functions are named as there), `src/llama-kv-cache.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from budget.footprint import EngineArgs
from budget.memory.arguments import effective, pad
from budget.memory.graph.rotations import rotations
from budget.memory.graph.tensors import (
    F16,
    F32,
    HOST,
    I64,
    ComputeGraph,
    GraphTensor,
    dims,
    graph_input,
    like,
    made,
    permute,
    reshape,
    strides,
    there,
    view,
)
from budget.memory.kv_cache import cell_counts
from budget.memory.shape import ModelShape, row_bytes
from budget.memory.split import ON_HOST, device_of_layers

I32: Final = 4
_FEW_TOKENS: Final = 32
Heads = tuple[GraphTensor, GraphTensor | None, GraphTensor | None]
"""Queries, keys and values; a layer that reads another one's cache has queries alone."""


@dataclass(slots=True)
class Cache:
    """The inputs of attention over one cache: all of the context, or a window.

    `rotations` are the rows of the matrices for keys and values, 0 for none.
    """

    cells: int
    k_ids: GraphTensor
    v_ids: GraphTensor
    mask: GraphTensor
    rotations: tuple[int, int]
    k_rotation: GraphTensor
    v_rotation: GraphTensor


class Blocks:
    """A graph under construction for one micro-batch of a model with these arguments."""

    def __init__(
        self, shape: ModelShape, args: EngineArgs, *, positions: int = 1, refused: bool = False
    ) -> None:
        """Begin one. `refused`: llama.cpp turns flash attention off when the cache is there already."""
        sizes = effective(args, causal=shape.causal)
        self.shape, self.args, self.graph = shape, args, ComputeGraph()
        self.tokens = pad(sizes.n_tokens, args.slots)
        self.outputs = sizes.n_outputs
        self.streams = sizes.n_streams
        self.tensors = {tensor.name: tensor for tensor in shape.tensors}
        self.transposed = args.flash_attention == "off"
        self.flash = not self.transposed and not refused
        self.positions = graph_input(positions * self.tokens, I32)
        self.output_ids = graph_input(self.outputs, I32)
        places = device_of_layers(args.tensor_split, args.n_gpu_layers, shape.n_layers)
        self.sides = [HOST if place == ON_HOST else int(place) for place in places]
        self._there = {
            side: (there(side, weight=True), there(side, weight=False))
            for side in {HOST, *self.sides}
        }
        self.side = HOST
        # `graph_get_cb`: norms are kept with their layer, or follow their neighbours.
        self.norms_stay = args.n_gpu_layers > shape.n_layers or self.tokens < _FEW_TOKENS
        self.mask = self._mask(self.tokens)  # of attention without a cache
        counts = cell_counts(shape, args)
        self.everything, self.window = (
            self._cache(cells, windowed=windowed)
            for cells, windowed in zip(counts, (False, True), strict=True)
        )

    def _mask(self, cells: int) -> GraphTensor:
        return graph_input(cells * self.tokens, F16 if self.flash else F32)

    def _cache(self, cells: int, *, windowed: bool) -> Cache:
        width_v = int(self.shape.layers.width_v.max(initial=0))
        rotated = rotations(self.shape, self.args, windowed=windowed)
        key, value = (graph_input(n * n, F32) for n in rotated)
        return Cache(
            cells,
            graph_input(self.tokens, I64),
            graph_input(self.tokens * (width_v if self.transposed else 1), I64),
            self._mask(cells),
            rotated,
            key,
            value,
        )

    def enter(self, layer: int) -> None:
        """What comes next belongs to that layer; the output's is the one after the last."""
        self.side = self.sides[layer]

    def has(self, layer: int, name: str) -> bool:
        """Whether the file has such a tensor for that layer."""
        return f"blk.{layer}.{name}" in self.tensors

    @property
    def weight(self) -> GraphTensor:
        """Any weight of the layer that is being built."""
        return self._there[self.side][0]

    @property
    def cache(self) -> GraphTensor:
        """The cache of the layer that is being built."""
        return self._there[self.side][1]

    def mat_mul(self, rows: int, source: GraphTensor, *, bias: bool = False) -> GraphTensor:
        """A weight of that many rows times a source, with a bias added."""
        _, second, third, fourth = source.ne
        found = made("mul_mat", (rows, second, third, fourth), self.weight, source)
        return like("add", found, self.weight) if bias else found

    def embedding(self) -> GraphTensor:
        """`build_inp_embd`: rows by token, and room for embeddings that are given instead."""
        ids = graph_input(self.tokens, I32)
        found = made("get_rows", dims(self.shape.n_embd, self.tokens), self.weight, ids)
        self.graph.expand(found)
        self.graph.expand(graph_input(self.shape.n_embd * self.tokens, F32))
        return found

    def norm(
        self, source: GraphTensor, *, op: str = "rms_norm", bias: bool = False, stays: bool = True
    ) -> GraphTensor:
        """`build_norm` with a weight; one that belongs to no layer never `stays`."""
        found = like(op, source)
        if self.norms_stay and stays:
            found.side = self.side
        found = like("mul", found, self.weight)
        return like("add", found, self.weight) if bias else found

    def rope(self, source: GraphTensor) -> GraphTensor:
        """`ggml_rope_ext`."""
        return like("rope", source, self.positions)

    def qkv(self, source: GraphTensor, layer: int) -> tuple[GraphTensor, GraphTensor, GraphTensor]:
        """`build_qkv`: out of three projections, or out of one, which gives views."""
        s = self.shape
        counts = (s.heads[layer], s.kv_heads[layer], s.kv_heads[layer])
        widths = (s.head_dim_k[layer], s.head_dim_k[layer], s.head_dim_v[layer])
        sizes = list(zip(counts, widths, strict=True))
        if self.has(layer, "attn_qkv.weight"):
            found = self._out_of_one(source, sizes, bias=self.has(layer, "attn_qkv.bias"))
        else:
            found = [
                reshape(
                    self.mat_mul(n * w, source, bias=self.has(layer, f"attn_{name}.bias")),
                    w, n, self.tokens,
                )
                for name, (n, w) in zip("qkv", sizes, strict=True)
            ]  # fmt: skip
        return found[0], found[1], found[2]

    def _out_of_one(
        self, source: GraphTensor, sizes: Sequence[tuple[int, int]], *, bias: bool
    ) -> list[GraphTensor]:
        fused = self.mat_mul(sum(n * w for n, w in sizes), source, bias=bias)
        row = fused.nb[1]
        return [
            view(fused, dims(w, n, self.tokens), (F32, F32 * w, row, row * self.tokens))
            for n, w in sizes
        ]

    def _rotated(self, source: GraphTensor, matrix: GraphTensor, n: int) -> GraphTensor:
        """`llama_mul_mat_hadamard`."""
        if not n:
            return source
        rows = source.ne[0] * source.rows // n
        if source.nb == strides(source.ne):
            flat = reshape(source, n, rows)
        else:
            flat = made("cont", dims(n, rows), source)
        return reshape(made("mul_mat", flat.ne, matrix, flat), *source.ne)

    def attention(self, qkv: Heads, layer: int, *, sinks: bool = False) -> GraphTensor:
        """`build_attn` with the output projection."""
        found = self.attended(qkv, layer, sinks=sinks)
        return self.mat_mul(self.shape.n_embd, found, bias=self.has(layer, "attn_output.bias"))

    def attended(self, qkv: Heads, layer: int, *, sinks: bool = False) -> GraphTensor:
        """`build_attn` over the cache of that layer, before the output projection."""
        cache = self.window if self.shape.layers.windowed[layer] else self.everything
        n_k, n_v = cache.rotations
        q = self._rotated(qkv[0], cache.k_rotation, n_k)
        k = None if qkv[1] is None else self._rotated(qkv[1], cache.k_rotation, n_k)
        v = None if qkv[2] is None else self._rotated(qkv[2], cache.v_rotation, n_v)
        # With two caches (`llm_graph_input_attn_kv_iswa`) keys come first.
        for tensor in (q, k, v) if self.shape.sliding_window else (q, v, k):
            if tensor is not None:
                self.graph.expand(tensor)
        if k is not None and v is not None:
            self._store(k, v, cache)
        return self._rotated(self._mha(q, cache, layer, sinks=sinks), cache.v_rotation, n_v)

    def _store(self, k: GraphTensor, v: GraphTensor, cache: Cache) -> None:
        """`cpy_k`, `cpy_v`: the results are views of the cache."""
        self.store_keys(k, cache)
        if not self.transposed:
            flat = dims(v.ne[0] * v.ne[1], self.tokens)
            values = view(v, flat, (F32, v.nb[2], v.nb[2], v.nb[2]))
        else:
            if v.nb[2] == F32 * v.ne[0] * v.ne[1]:
                values = reshape(v, v.ne[0] * v.ne[1], self.tokens)
            else:
                values = made("cont", dims(v.ne[0] * v.ne[1], self.tokens), v)
            values = reshape(values, 1, v.ne[0] * v.ne[1] * self.tokens)
        self._set_rows(values, cache.v_ids)

    def store_keys(self, k: GraphTensor, cache: Cache) -> None:
        """`cpy_k`."""
        flat = dims(k.ne[0] * k.ne[1], self.tokens)
        self._set_rows(view(k, flat, (F32, k.nb[2], k.nb[2], k.nb[2])), cache.k_ids)

    def _set_rows(self, rows: GraphTensor, ids: GraphTensor) -> None:
        self.graph.expand(
            GraphTensor("set_rows", rows.ne, rows.nb, (rows, ids, self.cache), self.cache)
        )

    def _mha(self, q: GraphTensor, cache: Cache, layer: int, *, sinks: bool) -> GraphTensor:
        """`build_attn_mha` over a cache."""
        s = self.shape
        heads, dim_v = s.heads[layer], s.head_dim_v[layer]
        queries = self.queries(q)
        if self.flash:
            found = self.flash_attention(queries, cache, layer, dim_v, sinks=sinks)
            return self.graph.expand(reshape(found, dim_v * heads, self.tokens))
        found = self.scores(queries, cache, layer)
        values = self.stored("v", cache, layer)
        if not self.transposed:
            ne = (cache.cells, dim_v, s.kv_heads[layer], self.streams)
            values = made("cont", ne, values, element=F32 if self.args.kv_type_v == "f32" else F16)
        return self.joined_heads(made("mul_mat", (dim_v, *found.ne[1:]), values, found))

    def queries(self, q: GraphTensor) -> GraphTensor:
        """Queries by stream, as attention reads them."""
        each = self.tokens // self.streams
        split = view(
            q, (q.ne[0], q.ne[1], each, self.streams), (q.nb[0], q.nb[1], q.nb[2], q.nb[2] * each)
        )
        return permute(split, (0, 2, 1, 3))

    def flash_attention(
        self, queries: GraphTensor, cache: Cache, layer: int, dim_v: int, *, sinks: bool = False
    ) -> GraphTensor:
        """All heads' results of flash attention, by token and stream."""
        k, v = (self._cast(kind, cache, layer) for kind in ("k", "v"))
        ne = (dim_v, queries.ne[2], queries.ne[1], self.streams)
        extra = (self.weight,) if sinks else ()
        return made("flash_attn", ne, queries, k, v, cache.mask, *extra)

    def scores(self, queries: GraphTensor, cache: Cache, layer: int) -> GraphTensor:
        """Attention's weights of every cell, without flash attention."""
        ne = (cache.cells, queries.ne[1], self.shape.heads[layer], self.streams)
        found = made("mul_mat", ne, self.stored("k", cache, layer), queries)
        if self.shape.architecture == "gemma2":
            found = softcap(found)
        return like("soft_max", found, cache.mask)

    def joined_heads(self, found: GraphTensor) -> GraphTensor:
        """Heads' results of each token in a row, without flash attention."""
        ne = dims(found.ne[0] * found.ne[2], self.tokens)
        return self.graph.expand(made("cont", ne, permute(found, (0, 2, 1, 3))))

    def _cast(self, kind: str, cache: Cache, layer: int) -> GraphTensor:
        """Keys or values as flash attention reads them: an F32 cache is copied to F16."""
        s = self.shape
        stored = self.stored(kind, cache, layer)
        if (self.args.kv_type_k if kind == "k" else self.args.kv_type_v) != "f32":
            return stored
        dim = (s.head_dim_k if kind == "k" else s.head_dim_v)[layer]
        ne = (dim, cache.cells, s.kv_heads[layer], self.streams)
        return made("cast", ne, stored, element=F16)

    def stored(self, kind: str, cache: Cache, layer: int) -> GraphTensor:
        """A layer's keys or values in the cache (`get_k`, `get_v`), which may be another layer's.

        Without flash attention a stream of values is as wide as the widest layer's.
        """
        s, trunk = self.shape, self.shape.n_layers - self.shape.n_layers_shared_kv
        owner = layer if layer < trunk else trunk - (2 if s.layers.windowed[layer] else 1)
        widths = s.layers.width_k if kind == "k" else s.layers.width_v
        stored_as = (self.args.kv_type_k if kind == "k" else self.args.kv_type_v).upper()
        widest = widths.max() if self.transposed and kind == "v" else widths[owner]
        own, stream = (row_bytes(stored_as, int(n)) * cache.cells for n in (widths[owner], widest))
        total = stream * (self.streams - 1) + own
        return view(self._there[self.sides[owner]][1], dims(total), (1, total, total, total))

    def feed_forward(
        self, source: GraphTensor, n_ff: int, layer: int = -1, *, joined: bool = False
    ) -> GraphTensor:
        """`build_ffn` with a gate: beside `up`, or joined with it in one matrix.

        With a layer, the biases that its tensors have are added.
        """
        tokens = source.ne[1]
        if joined:
            gated = made("glu", dims(n_ff, tokens), self.mat_mul(2 * n_ff, source))
        else:
            up = self.mat_mul(n_ff, source, bias=self.has(layer, "ffn_up.bias"))
            gate = self.mat_mul(n_ff, source, bias=self.has(layer, "ffn_gate.bias"))
            gated = like("glu", gate, up)
        return self.mat_mul(self.shape.n_embd, gated, bias=self.has(layer, "ffn_down.bias"))

    def output_rows(self, source: GraphTensor) -> GraphTensor:
        """The rows that logits are wanted of."""
        return made("get_rows", dims(source.ne[0], self.outputs), source, self.output_ids)


def softcap(source: GraphTensor) -> GraphTensor:
    """Scores or logits kept within bounds."""
    return like("scale", like("unary", like("scale", source)))
