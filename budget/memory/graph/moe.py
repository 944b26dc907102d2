"""A feed-forward of experts. Source: `src/llama-graph.cpp`, `build_moe_ffn`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.tensors import F32, GraphTensor, dims, like, made, reshape, view


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen and weighed.

    `normed` weights are brought to a sum of 1, `scaled` multiplied by a number. `biased_choice` adds a
    bias for the choice alone, out of `groups_used` of `groups`.
    """

    gating: Literal["softmax", "sigmoid", "softmax of the chosen"] = "softmax"
    normed: bool = True
    scaled: bool = False
    biased_choice: bool = False
    groups: int = 0
    groups_used: int = 0


def experts(
    b: Blocks, source: GraphTensor, layer: int, routing: Routing, logits: GraphTensor | None = None
) -> GraphTensor:
    """`build_moe_ffn` with gated experts: gate beside `up`, or joined with it in one matrix.

    `logits` are the router's, where something else than `source` is looked at for them.
    """
    used, tokens, n_ff = b.shape.n_experts_used, source.ne[1], b.shape.n_ff_expert[layer]
    bias = b.has(layer, "ffn_gate_inp.bias")
    joined = b.has(layer, "ffn_gate_up_exps.weight")
    if logits is None:
        logits = b.mat_mul(b.shape.n_experts, source, bias=bias)
    chosen, weights = _routed(b, logits, routing)
    b.graph.expand(weights)
    found = reshape(source, b.shape.n_embd, 1, tokens)
    if joined:
        both = _matrix(b, found, 2 * n_ff, chosen, bias=bias)
        half = dims(n_ff, used, tokens)
        gated = made("glu", half, view(both, half, both.nb), view(both, half, both.nb))
    else:
        # What comes first in a product of both is computed first.
        up = _matrix(b, found, n_ff, chosen, bias=bias)
        gated = like("glu", _matrix(b, found, n_ff, chosen, bias=bias), up)
    found = _matrix(b, gated, b.shape.n_embd, chosen, bias=bias)
    if b.has(layer, "ffn_down_exps.scale"):
        found = like("mul", found, _scales(b, chosen, tokens))
    return _summed(b, b.graph.expand(like("mul", found, weights)))


def _scales(b: Blocks, chosen: GraphTensor, tokens: int) -> GraphTensor:
    """A number for each expert, by token and chosen expert (`build_lora_mm_id`)."""
    every = made("repeat", dims(1, b.shape.n_experts, tokens), b.weight)
    return made("get_rows", dims(1, b.shape.n_experts_used, tokens), every, chosen)


def _routed(b: Blocks, logits: GraphTensor, routing: Routing) -> tuple[GraphTensor, GraphTensor]:
    """The chosen experts of each token, and their weights."""
    count, used, tokens = b.shape.n_experts, b.shape.n_experts_used, logits.ne[1]
    probs = logits
    if routing.gating != "softmax of the chosen":
        probs = like("soft_max" if routing.gating == "softmax" else "unary", probs)
    ranked = like("add", probs, b.weight) if routing.biased_choice else probs
    if routing.groups > 1:
        ranked = _within_groups(b, ranked, routing)
    chosen = _top(ranked, used)
    weights = made("get_rows", dims(1, used, tokens), reshape(probs, 1, count, tokens), chosen)
    if routing.gating == "softmax of the chosen":
        weights = reshape(like("soft_max", reshape(weights, used, tokens)), 1, used, tokens)
    if routing.normed:
        rows = reshape(weights, used, tokens)
        total = like("clamp", made("sum_rows", dims(1, tokens), rows))
        weights = reshape(like("div", rows, total), 1, used, tokens)
    return chosen, like("scale", weights) if routing.scaled else weights


def _top(source: GraphTensor, count: int) -> GraphTensor:
    """`ggml_argsort_top_k`: a view of everything in order."""
    order = like("argsort", source)
    return view(order, (count, *order.ne[1:]), order.nb)


def _within_groups(b: Blocks, probs: GraphTensor, routing: Routing) -> GraphTensor:
    """Nothing but the experts of the best groups can be chosen."""
    tokens, groups, used = probs.ne[1], routing.groups, routing.groups_used
    each = b.shape.n_experts // groups
    grouped = reshape(probs, each, groups, tokens)
    best = made(
        "get_rows", dims(1, 2, groups, tokens), reshape(grouped, 1, each, groups, tokens),
        _top(grouped, 2),
    )  # fmt: skip
    scores = made("sum_rows", dims(1, groups, tokens), reshape(best, 2, groups, tokens))
    kept = _top(reshape(scores, groups, tokens), used)
    values = made("get_rows", dims(each, used, tokens), grouped, kept)
    masked = like("fill", grouped)
    written = GraphTensor("set_rows", masked.ne, masked.nb, (values, kept, masked), masked)
    return reshape(written, b.shape.n_experts, tokens)


def _matrix(
    b: Blocks, source: GraphTensor, rows: int, ids: GraphTensor, *, bias: bool
) -> GraphTensor:
    ne = dims(rows, b.shape.n_experts_used, source.ne[2])
    found = made("mul_mat_id", ne, b.weight, source, ids)
    return like("add_id", found, b.weight, ids) if bias else found


def _summed(b: Blocks, found: GraphTensor) -> GraphTensor:
    width, count, tokens = found.ne[:3]
    strided = (F32, found.nb[2], found.nb[2] * tokens, found.nb[2] * tokens)
    each = [view(found, dims(width, tokens), strided) for _ in range(count)]
    for one in each:
        b.graph.expand(one)
    total = each[0]
    for one in each[1:]:
        total = b.graph.expand(like("add", total, one))
    return made("cont", dims(width, tokens), total) if count == 1 else total
