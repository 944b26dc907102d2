"""Multi-head latent attention. Source: `src/models/deepseek2.cpp`; its cache holds keys alone."""

from __future__ import annotations

from budget.estimate.ggml_graph import F16, F32, Tensor, dims, like, made, permute, reshape, view
from budget.estimate.graph_blocks import Blocks


def latent_attention(b: Blocks, source: Tensor, layer: int) -> Tensor:
    """Attention with the keys' projection absorbed into the queries, and the output projection."""
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
    for tensor in (queries, latent, keys):
        b.graph.expand(tensor)
    b.store_keys(keys, b.everything)
    return b.mat_mul(s.n_embd, _attended(b, b.queries(queries), layer))


def _queries(b: Blocks, source: Tensor, layer: int) -> Tensor:
    s = b.shape
    found = source
    if f"blk.{layer}.attn_q_a.weight" in b.tensor_names:
        found = b.norm(b.mat_mul(s.q_lora_rank, source))
    dim, heads = s.head_dim_k_mla, s.heads[layer]
    return reshape(b.mat_mul(dim * heads, found), dim, heads, b.tokens)


def _attended(b: Blocks, queries: Tensor, layer: int) -> Tensor:
    """The heads' results, brought back from the latent to the values' dimensions."""
    s = b.shape
    rank, dim, heads = s.kv_lora_rank, s.head_dim_v_mla, s.heads[layer]
    if b.flash:
        found = permute(b.flash_attention(queries, b.everything, layer, rank), (0, 2, 1, 3))
        found = permute(b.mat_mul(dim, found), (0, 2, 1, 3))
        return b.graph.expand(reshape(like("cont", found), dim * heads, b.tokens))
    weights = b.scores(queries, b.everything, heads, softcap=False)
    # Values are a view of the keys; they are needed transposed.
    element = F32 if b.args.kv_type_k == "f32" else F16
    values = made("cont", (b.everything.cells, rank, 1, b.streams), b.cache, element=element)
    found = made("mul_mat", (rank, *weights.ne[1:]), values, weights)
    return b.joined_heads(b.mat_mul(dim, found))
