"""Gated delta nets, and the gated attention between them. Sources: `src/models/qwen35.cpp`,
`delta-net-base.cpp` (the fused operation, which the CPU, CUDA and RPC have).
"""  # noqa: D205

from __future__ import annotations

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.recurrent_state import StateBlocks, by_token
from budget.memory.graph.tensors import (
    F32,
    GraphTensor,
    dims,
    like,
    made,
    reshape,
    strides,
    view,
)


def gated_attention(b: Blocks, source: GraphTensor, layer: int) -> GraphTensor:
    """`build_layer_attn`: queries and a gate come out of one projection."""
    s, tokens = b.shape, b.tokens
    dim, heads, kv_heads = s.head_dim_k[layer], s.heads[layer], s.kv_heads[layer]
    both = b.mat_mul(2 * dim * heads, source, bias=b.has(layer, "attn_q.bias"))
    keys = b.mat_mul(dim * kv_heads, source, bias=b.has(layer, "attn_k.bias"))
    values = b.mat_mul(dim * kv_heads, source, bias=b.has(layer, "attn_v.bias"))
    half = dims(dim, heads, tokens)
    spaced = (F32, 2 * F32 * dim, 2 * F32 * dim * heads, 2 * F32 * dim * heads * tokens)
    queries = b.norm(view(both, half, spaced))
    keys = b.norm(reshape(keys, dim, kv_heads, tokens))
    gate = made("cont", dims(dim * heads, tokens), view(both, half, spaced))
    values = reshape(values, dim, kv_heads, tokens)
    found = b.attended((b.rope(queries), b.rope(keys), values), layer)
    return b.mat_mul(s.n_embd, like("mul", found, like("unary", gate)))


def delta_net(states: StateBlocks, source: GraphTensor) -> GraphTensor:
    """`build_layer_attn_linear`."""
    b, s = states.blocks, states.blocks.shape
    slots, each, heads, dim = states.slots, states.each, s.ssm_dt_rank, s.ssm_inner // s.ssm_dt_rank
    width = s.ssm_inner + 2 * s.ssm_groups * s.ssm_state
    mixed = reshape(b.mat_mul(width, source), width, each, slots)
    z = b.mat_mul(s.ssm_inner, source)
    beta = like("unary", reshape(b.mat_mul(heads, source), 1, heads, each, slots))
    alpha = like("add", reshape(b.mat_mul(heads, source), heads, each, slots), b.weight)
    gate = reshape(like("mul", like("unary", alpha), b.weight), 1, heads, each, slots)
    both = states.remembered(mixed, states.convolution_state(width))
    state = states.rows(s.ssm_state * s.ssm_inner)
    mix = like("unary", made("ssm_conv", dims(width, each, slots), both, b.weight))
    wide = dims(s.ssm_state, s.ssm_groups, each, slots)
    query, key = (_normed(view(mix, wide, by_token(mix, s.ssm_state))) for _ in range(2))
    by_head = dims(dim, heads, each, slots)
    value = view(mix, by_head, by_token(mix, dim))
    size = s.ssm_state * s.ssm_inner * slots
    found = made(
        "gated_delta_net", dims(s.ssm_inner * b.tokens + size), query, key, value, gate, beta,
        reshape(state, dim, dim, heads, slots),
    )  # fmt: skip
    states.saved(view(found, dims(size), found.nb))
    result = b.norm(view(found, by_head, strides(by_head)))
    result = like("mul", result, like("unary", reshape(z, *by_head)))
    result = b.mat_mul(s.n_embd, reshape(result, s.ssm_inner, each, slots))
    return reshape(result, s.n_embd, b.tokens)


def _normed(source: GraphTensor) -> GraphTensor:
    """`build_gdn_l2_norm`."""
    return like("scale", like("rms_norm", source))
