"""Multi-head latent attention. Source: `src/models/deepseek2.cpp`."""

from __future__ import annotations

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.tensors import (
    F16,
    F32,
    GraphTensor,
    dims,
    like,
    made,
    permute,
    reshape,
    view,
)


def latent_attention(
    b: Blocks, source: GraphTensor, layer: int, scale: GraphTensor | None
) -> GraphTensor:
    """Attention with the keys' projection absorbed into the queries: its cache holds keys alone.

    `scale` is the queries', by token.
    """
    s, tokens = b.shape, b.tokens
    rank, rope, heads = s.kv_lora_rank, s.rope_dims, s.heads[layer]
    q = _queries(b, source, layer)
    both = b.mat_mul(rank + rope, source)
    latent = b.norm(view(both, dims(rank, tokens), both.nb))
    k_rope = b.rope(view(both, dims(rope, 1, tokens), (F32, both.nb[1], both.nb[1], both.nb[2])))
    plain = view(q, dims(s.head_dim_k_mla - rope, heads, tokens), q.nb)
    q_rope = b.rope(view(q, dims(rope, heads, tokens), q.nb))
    absorbed = made("mul_mat", dims(rank, tokens, heads), b.weight, permute(plain, (0, 2, 1, 3)))
    absorbed = permute(absorbed, (0, 2, 1, 3))
    queries = made("concat", dims(rank + rope, heads, tokens), absorbed, q_rope)
    latent = reshape(latent, rank, 1, tokens)
    keys = made("concat", dims(rank + rope, 1, tokens), latent, k_rope)
    if scale is not None:
        queries = like("mul", queries, scale)
    for tensor in (queries, latent, keys):
        b.graph.expand(tensor)
    b.store_keys(keys, b.everything)
    return b.mat_mul(s.n_embd, _attended(b, b.queries(queries), layer))


def unfolded_attention(
    b: Blocks, source: GraphTensor, layer: int, scale: GraphTensor | None
) -> GraphTensor:
    """The same with keys and values brought back from the latent first, as older files have it."""
    s, tokens = b.shape, b.tokens
    rank, rope, heads = s.kv_lora_rank, s.rope_dims, s.heads[layer]
    dim_k, dim_v = s.head_dim_k[layer], s.head_dim_v[layer]
    plain = dim_k - rope
    q = _queries(b, source, layer)
    both = b.mat_mul(rank + rope, source)
    shared = b.rope(view(both, dims(rope, 1, tokens), (F32, both.nb[1], both.nb[1], both.nb[2])))
    latent = b.norm(view(both, dims(rank, tokens), both.nb))
    kv = b.mat_mul((plain + dim_v) * heads, latent)
    row = F32 * (plain + dim_v)
    spaced = (F32, row, row * heads, row * heads * tokens)
    values = made("cont", dims(dim_v, heads, tokens), view(kv, dims(dim_v, heads, tokens), spaced))
    repeated = made("repeat", dims(rope, heads, tokens), shared)
    keys = made(
        "concat", dims(dim_k, heads, tokens), view(kv, dims(plain, heads, tokens), spaced), repeated
    )
    queries = b.rope(q)
    if scale is not None:
        queries = like("mul", queries, scale)
    return b.attention((queries, keys, values), layer)


def _queries(b: Blocks, source: GraphTensor, layer: int) -> GraphTensor:
    s = b.shape
    found = source
    if f"blk.{layer}.attn_q_a.weight" in b.tensors:
        found = b.norm(b.mat_mul(s.q_lora_rank, source))
    dim, heads = s.head_dim_k_mla or s.head_dim_k[layer], s.heads[layer]
    return reshape(b.mat_mul(dim * heads, found), dim, heads, b.tokens)


def _attended(b: Blocks, queries: GraphTensor, layer: int) -> GraphTensor:
    """The heads' results, brought back from the latent to the values' dimensions."""
    s = b.shape
    rank, dim, heads = s.kv_lora_rank, s.head_dim_v_mla, s.heads[layer]
    if b.flash:
        found = permute(b.flash_attention(queries, b.everything, layer, rank), (0, 2, 1, 3))
        found = permute(b.mat_mul(dim, found), (0, 2, 1, 3))
        return b.graph.expand(reshape(like("cont", found), dim * heads, b.tokens))
    weights = b.scores(queries, b.everything, layer)
    # Values are a view of the keys; they are needed transposed.
    element = F32 if b.args.kv_type_k == "f32" else F16
    keys = b.stored("k", b.everything, layer)
    values = made("cont", (b.everything.cells, rank, 1, b.streams), keys, element=element)
    found = made("mul_mat", (rank, *weights.ne[1:]), values, weights)
    return b.joined_heads(b.mat_mul(dim, found))
