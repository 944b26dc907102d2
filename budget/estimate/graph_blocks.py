"""The blocks that llama.cpp builds its graphs of: norm, attention, feed-forward, experts.

Source: `src/llama-graph.cpp` (the functions are named as there), `src/llama-kv-cache.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from budget.estimate.arguments import effective, pad
from budget.estimate.features import rotations
from budget.estimate.ggml_graph import (
    DEVICE,
    F16,
    F32,
    HOST,
    I64,
    Graph,
    Tensor,
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
from budget.estimate.kv import cell_counts
from budget.estimate.shape import ModelShape
from budget.footprint import EngineArgs

_I32: Final = 4
_FEW_TOKENS: Final = 32


@dataclass(slots=True)
class Cache:
    """The inputs of attention over one cache: all of the context, or a window."""

    cells: int
    k_ids: Tensor
    v_ids: Tensor
    mask: Tensor
    k_rotation: Tensor | None
    v_rotation: Tensor | None


class Blocks:
    """A graph under construction for one micro-batch of a model with these arguments."""

    def __init__(self, shape: ModelShape, args: EngineArgs) -> None:
        sizes = effective(args, causal=shape.causal)
        self.shape, self.args, self.graph = shape, args, Graph()
        self.tokens = pad(sizes.n_tokens, args.slots)
        self.outputs = sizes.n_outputs
        self.streams = sizes.n_streams
        self.tensor_names = frozenset(tensor.name for tensor in shape.tensors)
        self.flash = args.flash_attention != "off"
        self.positions = graph_input(self.tokens, _I32)
        self.output_ids = graph_input(self.outputs, _I32)
        self._sides = {
            side: (there(side, weight=True), there(side, weight=False)) for side in (HOST, DEVICE)
        }
        self.side = HOST
        # `graph_get_cb`: norms are kept with their layer, or follow their neighbours.
        whole = args.n_gpu_layers > shape.n_layers
        self.norms_stay = whole or self.tokens < _FEW_TOKENS
        everything, window = cell_counts(shape, args)
        self.everything, self.window = self._cache(everything), self._cache(window)

    def _cache(self, cells: int) -> Cache:
        width_v = int(self.shape.layers.width_v.max(initial=0))
        key, value = (
            graph_input(n * n, F32) if n else None for n in rotations(self.shape, self.args)
        )
        return Cache(
            cells,
            graph_input(self.tokens, I64),
            graph_input(self.tokens * (1 if self.flash else width_v), I64),
            graph_input(cells * self.tokens, F16 if self.flash else F32),
            key,
            value,
        )

    @property
    def weight(self) -> Tensor:
        """Any weight of the layer that is being built."""
        return self._sides[self.side][0]

    @property
    def cache(self) -> Tensor:
        """The cache of the layer that is being built."""
        return self._sides[self.side][1]

    def mat_mul(self, rows: int, source: Tensor) -> Tensor:
        """A weight of that many rows times a source."""
        _, second, third, fourth = source.ne
        return made("mul_mat", (rows, second, third, fourth), self.weight, source)

    def embedding(self) -> Tensor:
        """`build_inp_embd`: rows by token, and room for embeddings that are given instead."""
        found = made(
            "get_rows",
            dims(self.shape.n_embd, self.tokens),
            self.weight,
            graph_input(self.tokens, _I32),
        )
        self.graph.expand(found)
        self.graph.expand(graph_input(self.shape.n_embd * self.tokens, F32))
        return found

    def norm(self, source: Tensor, *, op: str = "rms_norm", bias: bool = False) -> Tensor:
        """`build_norm` with a weight."""
        found = like(op, source)
        if self.norms_stay:
            found.side = self.side
        found = like("mul", found, self.weight)
        return like("add", found, self.weight) if bias else found

    def rope(self, source: Tensor) -> Tensor:
        """`ggml_rope_ext`."""
        return like("rope", source, self.positions)

    def heads(self, source: Tensor, heads: int, dim: int, *, bias: bool) -> Tensor:
        """A projection to that many heads (`build_qkv`)."""
        found = self.mat_mul(heads * dim, source)
        if bias:
            found = like("add", found, self.weight)
        return reshape(found, dim, heads, self.tokens)

    def fused_heads(self, source: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values out of one projection: views that are not contiguous."""
        s = self.shape
        counts = (s.heads[layer], s.kv_heads[layer], s.kv_heads[layer])
        widths = (s.head_dim_k[layer], s.head_dim_k[layer], s.head_dim_v[layer])
        fused = self.mat_mul(sum(n * w for n, w in zip(counts, widths, strict=True)), source)
        row = fused.nb[1]
        found = [
            view(fused, dims(w, n, self.tokens), (F32, F32 * w, row, row * self.tokens))
            for n, w in zip(counts, widths, strict=True)
        ]
        return found[0], found[1], found[2]

    def _rotated(self, source: Tensor, matrix: Tensor | None, n: int) -> Tensor:
        """`llama_mul_mat_hadamard`."""
        if matrix is None:
            return source
        rows = source.ne[0] * source.rows // n
        if source.nb == strides(source.ne):
            flat = reshape(source, n, rows)
        else:
            flat = made("cont", dims(n, rows), source)
        return reshape(made("mul_mat", flat.ne, matrix, flat), *source.ne)

    def attention(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        layer: int,
        *,
        sinks: bool = False,
        bias: bool = False,
        softcap: bool = False,
    ) -> Tensor:
        """`build_attn` over the cache of that layer, with the output projection."""
        windowed = bool(self.shape.layers.windowed[layer])
        cache = self.window if windowed else self.everything
        n_k, n_v = rotations(self.shape, self.args)
        q = self._rotated(qkv[0], cache.k_rotation, n_k)
        k = self._rotated(qkv[1], cache.k_rotation, n_k)
        v = self._rotated(qkv[2], cache.v_rotation, n_v)
        # With two caches (`llm_graph_input_attn_kv_iswa`) keys come first.
        for tensor in (q, k, v) if self.shape.sliding_window else (q, v, k):
            self.graph.expand(tensor)
        self._store(k, v, cache)
        found = self._mha(q, cache, layer, sinks=sinks, softcap=softcap)
        found = self._rotated(found, cache.v_rotation, n_v)
        found = self.mat_mul(self.shape.n_embd, found)
        return like("add", found, self.weight) if bias else found

    def _store(self, k: Tensor, v: Tensor, cache: Cache) -> None:
        """`cpy_k`, `cpy_v`: the results are views of the cache."""
        self.store_keys(k, cache)
        if self.flash:
            flat = dims(v.ne[0] * v.ne[1], self.tokens)
            values = view(v, flat, (F32, v.nb[2], v.nb[2], v.nb[2]))
        else:
            if v.nb[2] == F32 * v.ne[0] * v.ne[1]:
                values = reshape(v, v.ne[0] * v.ne[1], self.tokens)
            else:
                values = made("cont", dims(v.ne[0] * v.ne[1], self.tokens), v)
            values = reshape(values, 1, v.ne[0] * v.ne[1] * self.tokens)
        self._set_rows(values, cache.v_ids)

    def store_keys(self, k: Tensor, cache: Cache) -> None:
        """`cpy_k`."""
        flat = dims(k.ne[0] * k.ne[1], self.tokens)
        self._set_rows(view(k, flat, (F32, k.nb[2], k.nb[2], k.nb[2])), cache.k_ids)

    def _set_rows(self, rows: Tensor, ids: Tensor) -> None:
        self.graph.expand(Tensor("set_rows", rows.ne, rows.nb, (rows, ids, self.cache), self.cache))

    def _mha(self, q: Tensor, cache: Cache, layer: int, *, sinks: bool, softcap: bool) -> Tensor:
        """`build_attn_mha`."""
        s = self.shape
        heads, dim_v = s.heads[layer], s.head_dim_v[layer]
        queries = self.queries(q)
        if self.flash:
            found = self.flash_attention(queries, cache, layer, dim_v, sinks=sinks)
            return self.graph.expand(reshape(found, dim_v * heads, self.tokens))
        found = self.scores(queries, cache, heads, softcap=softcap)
        found = made("mul_mat", (dim_v, *found.ne[1:]), self.cache, found)
        return self.joined_heads(found)

    def queries(self, q: Tensor) -> Tensor:
        """Queries by stream, as attention reads them."""
        each = self.tokens // self.streams
        split = view(
            q, (q.ne[0], q.ne[1], each, self.streams), (q.nb[0], q.nb[1], q.nb[2], q.nb[2] * each)
        )
        return permute(split, (0, 2, 1, 3))

    def flash_attention(
        self, queries: Tensor, cache: Cache, layer: int, dim_v: int, *, sinks: bool = False
    ) -> Tensor:
        """All heads' results of flash attention, by token and stream."""
        k, v = (self._cast(kind, cache, layer) for kind in ("k", "v"))
        ne = (dim_v, queries.ne[2], queries.ne[1], self.streams)
        extra = (self.weight,) if sinks else ()
        return made("flash_attn", ne, queries, k, v, cache.mask, *extra)

    def scores(self, queries: Tensor, cache: Cache, heads: int, *, softcap: bool) -> Tensor:
        """Attention's weights of every cell, without flash attention."""
        ne = (cache.cells, queries.ne[1], heads, self.streams)
        found = made("mul_mat", ne, self.cache, queries)
        if softcap:
            found = like("scale", like("unary", like("scale", found)))
        return like("soft_max", found, cache.mask)

    def joined_heads(self, found: Tensor) -> Tensor:
        """Heads' results of each token in a row, without flash attention."""
        ne = dims(found.ne[0] * found.ne[2], self.tokens)
        return self.graph.expand(made("cont", ne, permute(found, (0, 2, 1, 3))))

    def _cast(self, kind: str, cache: Cache, layer: int) -> Tensor:
        """Keys or values as flash attention reads them: an F32 cache is copied to F16."""
        s = self.shape
        stored = self.args.kv_type_k if kind == "k" else self.args.kv_type_v
        if stored != "f32":
            return self.cache
        dim = (s.head_dim_k if kind == "k" else s.head_dim_v)[layer]
        ne = (dim, cache.cells, s.kv_heads[layer], self.streams)
        return made("cast", ne, self.cache, element=F16)

    def feed_forward(self, source: Tensor, n_ff: int, *, joined: bool = False) -> Tensor:
        """`build_ffn` with a gate: beside `up`, or joined with it in one matrix."""
        tokens = source.ne[1]
        if joined:
            gated = made("glu", dims(n_ff, tokens), self.mat_mul(2 * n_ff, source))
        else:
            up = self.mat_mul(n_ff, source)
            gated = like("glu", self.mat_mul(n_ff, source), up)
        return self.mat_mul(self.shape.n_embd, gated)

    def output_rows(self, source: Tensor) -> Tensor:
        """The rows that logits are wanted of."""
        return made("get_rows", dims(source.ne[0], self.outputs), source, self.output_ids)

    def logits(self, source: Tensor, *, softcap: bool = False) -> None:
        """The last norm and the output layer: their results are kept."""
        final = like("mul", like("rms_norm", source), self.weight)
        final.output = True
        found = self.mat_mul(self.shape.n_vocab, final)
        if softcap:
            found = like("scale", like("unary", like("scale", found)))
        found.output = True
        self.graph.expand(found)
