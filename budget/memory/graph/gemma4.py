"""Layers of Gemma 4: norms around everything, experts beside a dense part, inputs of their own for each
layer. Source: `src/models/gemma4.cpp`.
"""  # noqa: D205

from __future__ import annotations

from budget.memory.graph.blocks import I32, Blocks, Heads
from budget.memory.graph.moe import Routing, experts
from budget.memory.graph.tensors import (
    F32,
    GraphTensor,
    dims,
    graph_input,
    like,
    made,
    permute,
    reshape,
    view,
)


def per_layer_inputs(b: Blocks, source: GraphTensor) -> GraphTensor | None:
    """Each layer's own input of every token: looked up, and projected from the embeddings."""
    width, layers, tokens = per_layer_width(b), b.shape.n_layers, b.tokens
    if not width:
        return None
    rows = dims(width * layers, tokens)
    found = made("get_rows", rows, b.weight, graph_input(tokens, I32))
    found = b.graph.expand(like("scale", reshape(found, width, layers, tokens)))
    b.enter(0)
    projected = like("scale", b.mat_mul(width * layers, source))
    projected = b.norm(reshape(projected, width, layers, tokens), stays=False)
    both = permute(like("scale", like("add", projected, found)), (0, 2, 1, 3))
    return made("cont", both.ne, both)


def per_layer_width(b: Blocks) -> int:
    """Elements of such an input; 0 without them."""
    width = b.shape.key("embedding_length_per_layer_input")
    return width if isinstance(width, int) else 0


def gemma4_layer(
    b: Blocks, source: GraphTensor, layer: int, own: GraphTensor | None
) -> GraphTensor:
    """One layer; `own` are the inputs of all layers."""
    attended = b.norm(b.attention(_heads(b, b.norm(source), layer), layer))
    inner = like("add", attended, source)
    found = like("add", b.norm(_feed_forward(b, inner, layer), stays=False), inner)
    if own is not None:
        found = like("add", found, _with_own_input(b, found, own))
    if b.has(layer, "layer_output_scale.weight"):
        found = like("mul", found, b.weight)
    return found


def _heads(b: Blocks, source: GraphTensor, layer: int) -> Heads:
    s = b.shape
    dim, kv_heads = s.head_dim_k[layer], s.kv_heads[layer]
    q = reshape(b.mat_mul(dim * s.heads[layer], source), dim, s.heads[layer], b.tokens)
    q = b.rope(b.norm(q))
    if layer >= s.n_layers - s.n_layers_shared_kv:
        return q, None, None
    keys = b.mat_mul(dim * kv_heads, source)
    values = b.mat_mul(dim * kv_heads, source) if b.has(layer, "attn_v.weight") else keys
    k = b.rope(b.norm(reshape(keys, dim, kv_heads, b.tokens)))
    return q, k, like("rms_norm", reshape(values, dim, kv_heads, b.tokens))


def _feed_forward(b: Blocks, source: GraphTensor, layer: int) -> GraphTensor:
    n_ff = b.shape.n_ff[layer]
    found = b.feed_forward(b.norm(source), n_ff, layer)
    if not b.has(layer, "ffn_gate_inp.weight"):
        return found
    found = b.norm(found)
    beside = b.norm(source)
    logits = like("mul", like("scale", like("rms_norm", source)), b.weight)
    logits = b.mat_mul(b.shape.n_experts, logits)
    return like("add", found, b.norm(experts(b, beside, layer, Routing(), logits)))


def _with_own_input(b: Blocks, source: GraphTensor, own: GraphTensor) -> GraphTensor:
    width = own.ne[0]
    gate = like("unary", b.mat_mul(width, source))
    part = view(own, dims(width, b.tokens), (F32, F32 * width, own.nb[2], own.nb[2]))
    return b.norm(b.mat_mul(b.shape.n_embd, like("mul", gate, part)))
