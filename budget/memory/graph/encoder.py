"""Encoders: attention within the micro-batch, without a cache. Source: `src/models/bert.cpp`."""

from __future__ import annotations

from collections.abc import Callable

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.tensors import (
    F16,
    GraphTensor,
    dims,
    like,
    made,
    permute,
    reshape,
    strides,
    transpose,
    view,
)

Rows = Callable[..., tuple[GraphTensor, ...]]


def encoder_input(b: Blocks, found: GraphTensor) -> GraphTensor:
    """Embeddings of tokens, of their type, and of their position where there is no rotary embedding."""
    if "token_types.weight" in b.tensors:
        row = dims(b.shape.n_embd)
        found = like("add", found, view(b.weight, row, strides(row)))
    if "position_embd.weight" in b.tensors:
        positions = made("get_rows", found.ne, b.weight, b.positions)
        found = like("add", positions, found)
    b.enter(0)
    return b.norm(found, op="norm", bias=True)


def encoder_layer(b: Blocks, source: GraphTensor, layer: int, wanted: Rows) -> GraphTensor:
    """Both norms come after what they are of; `wanted` takes the rows that go on."""
    q, k, v = b.qkv(source, layer)
    if b.shape.architecture != "bert":
        q, k = b.rope(q), b.rope(k)
    found, source = wanted(_attended(b, (q, k, v), layer), source)
    inner = b.norm(like("add", found, source), op="norm", bias=True)
    return b.norm(like("add", _feed_forward(b, inner, layer), inner), op="norm", bias=True)


def _feed_forward(b: Blocks, source: GraphTensor, layer: int) -> GraphTensor:
    n_ff = b.shape.n_ff[layer]
    if b.has(layer, "ffn_gate.weight"):
        return b.feed_forward(source, n_ff, layer)
    up = like("unary", b.mat_mul(n_ff, source, bias=b.has(layer, "ffn_up.bias")))
    return b.mat_mul(b.shape.n_embd, up, bias=b.has(layer, "ffn_down.bias"))


def _attended(
    b: Blocks, qkv: tuple[GraphTensor, GraphTensor, GraphTensor], layer: int
) -> GraphTensor:
    """`build_attn` for `llm_graph_input_attn_no_cache`."""
    s, tokens = b.shape, b.tokens
    for tensor in qkv:
        b.graph.expand(tensor)
    q, k, v = qkv
    queries = permute(view(q, q.ne, q.nb), (0, 2, 1, 3))
    keys, values = (permute(tensor, (0, 2, 1, 3)) for tensor in (k, v))
    dim, heads = s.head_dim_v[layer], s.heads[layer]
    if b.flash:
        keys, values = (made("cast", each.ne, each, element=F16) for each in (keys, values))
        found = made("flash_attn", dims(dim, heads, tokens), queries, keys, values, b.mask)
        found = b.graph.expand(reshape(found, dim * heads, tokens))
    else:
        weights = made("mul_mat", dims(tokens, tokens, heads), keys, queries)
        weights = like("soft_max", weights, b.mask)
        turned = transpose(values)
        turned = made("cont", turned.ne, turned)
        found = b.joined_heads(made("mul_mat", dims(dim, tokens, heads), turned, weights))
    return b.mat_mul(s.n_embd, found, bias=b.has(layer, "attn_output.bias"))
