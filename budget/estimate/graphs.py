"""The graph of each architecture for a full micro-batch, layer by layer.

Sources: `src/models/*.cpp` of llama.cpp, one function for each way to build a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from budget.estimate.ggml_graph import DEVICE, HOST, Graph, Tensor, like
from budget.estimate.graph_blocks import Blocks
from budget.estimate.graph_experts import Routing, experts
from budget.estimate.graph_latent import latent_attention
from budget.estimate.graph_state import StateBlocks
from budget.estimate.shape import ModelShape
from budget.footprint import EngineArgs

_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
_SAME_KIND = 3
_LONGEST_LEAD = 5
_LONGEST_PERIOD = 13


@dataclass(frozen=True, slots=True)
class Layout:
    """In what the decoders differ whose layers are attention and a feed-forward."""

    qk_norm: bool = False
    joined: bool = False
    """Gate and `up` of the feed-forward are one matrix."""
    scaled_queries: bool = False
    scaled_embedding: bool = False
    post_norms: bool = False
    attention_softcap: bool = False
    latent: bool = False
    kind: Literal["attention", "state", "hybrid"] = "attention"
    late_output: bool = False
    """Every token goes through the last layer, and its result is kept."""


LAYOUTS = {
    "llama": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(qk_norm=True),
    "qwen3moe": Layout(qk_norm=True),
    "phi3": Layout(joined=True, scaled_queries=True),
    "gemma2": Layout(
        scaled_queries=True, scaled_embedding=True, post_norms=True, attention_softcap=True
    ),
    "gemma3": Layout(qk_norm=True, scaled_queries=True, scaled_embedding=True, post_norms=True),
    "gpt-oss": Layout(late_output=True),
    "deepseek2": Layout(latent=True),
    "mamba": Layout(kind="state"),
    "mamba2": Layout(kind="state"),
    "falcon-h1": Layout(kind="hybrid"),
}


def graph_of(shape: ModelShape, args: EngineArgs) -> Graph | None:
    """The graph of a full micro-batch of a model with these arguments; `None` where it is not known.

    An embedding engine's is not: its end depends on how it pools.
    """
    if shape.architecture not in LAYOUTS or not shape.causal or args.embeddings:
        return None
    if shape.architecture == "deepseek2" and not shape.is_mla:
        return None
    layout, blocks = LAYOUTS[shape.architecture], Blocks(shape, args)
    found = blocks.embedding()
    if layout.scaled_embedding:
        found = like("scale", found)
    states = StateBlocks(blocks)
    first = first_on_device(shape, args)
    layers = representative_layers(shape, first)
    for layer in layers:
        blocks.side = DEVICE if layer >= first else HOST
        found = _LAYERS[layout.kind](blocks, states, found, layer, layer == layers[-1])
    blocks.side = DEVICE if first <= shape.n_layers else HOST
    if layout.late_output:
        found.output = True
        found = blocks.output_rows(found)
    softcap = shape.key("final_logit_softcapping") or shape.architecture == "gemma2"
    blocks.logits(found, softcap=bool(softcap))
    return blocks.graph


def first_on_device(shape: ModelShape, args: EngineArgs) -> int:
    """The first layer on the device; the output counts as the layer after the last one."""
    return max(shape.n_layers + 1 - args.n_gpu_layers, 0)


def representative_layers(shape: ModelShape, first_on_device: int) -> list[int]:
    """Layers whose graph has the peak of the whole: of each side both ends, and whole periods left out."""
    t = shape.layers
    kinds = list(
        zip(t.windowed, t.width_q, t.width_k, t.width_v, t.ff, _has_experts(shape), strict=True)
    )
    split = min(first_on_device, shape.n_layers)
    return [*_ends(kinds, 0, split), *_ends(kinds, split, shape.n_layers)]


def _ends(kinds: Sequence[object], start: int, end: int) -> list[int]:
    lead, period = _repetition(kinds[start:end])
    kept = max(period, _SAME_KIND)
    spare = max(end - start - lead - 2 * kept, 0) // period * period
    begin = start + lead + kept
    return [*range(start, min(begin, end)), *range(min(begin + spare, end), end)]


def _repetition(kinds: Sequence[object]) -> tuple[int, int]:
    """How many come first that are otherwise, and after how many the others repeat."""
    for lead in range(min(_LONGEST_LEAD, len(kinds))):
        rest = kinds[lead:]
        for period in range(1, _LONGEST_PERIOD):
            if rest[period:] == rest[: len(rest) - period]:
                return lead, period
    return 0, max(len(kinds), 1)


def _has_experts(shape: ModelShape) -> Sequence[bool]:
    return [bool(shape.n_experts) and i >= shape.n_layers_dense_lead for i in range(shape.n_layers)]


def _attention_layer(b: Blocks, _s: StateBlocks, source: Tensor, layer: int, last: bool) -> Tensor:  # noqa: FBT001
    layout = LAYOUTS[b.shape.architecture]
    found = b.norm(source)
    if layout.latent:
        found = latent_attention(b, found, layer)
    else:
        found = b.attention(
            _qkv(b, layout, found, layer),
            layer,
            sinks=layout.late_output,
            bias=_has(b, layer, "attn_output.bias"),
            softcap=layout.attention_softcap,
        )
    residual = source
    if last and not layout.late_output:
        found, residual = b.output_rows(found), b.output_rows(source)
    if layout.post_norms:
        found = b.norm(found)
    inner = like("add", found, residual)
    found = _feed_forward(b, layout, b.norm(inner), layer)
    if layout.post_norms:
        found = b.norm(found)
    return like("add", inner, found) if layout.joined else like("add", found, inner)


def _feed_forward(b: Blocks, layout: Layout, source: Tensor, layer: int) -> Tensor:
    s = b.shape
    if not s.n_experts or layer < s.n_layers_dense_lead:
        return b.feed_forward(source, int(s.layers.ff[layer]), joined=layout.joined)
    n_ff, oss = int(s.layers.expert_ff[layer]), layout.late_output
    joined = _has(b, layer, "ffn_gate_up_exps.weight")
    routing = _routing(b, layer)
    found = experts(b, source, n_ff, routing, bias=oss, joined=joined)
    if layout.latent:
        shared = b.feed_forward(source, s.n_experts_shared * n_ff)
        found = like("add", found, shared)
    return found


def _routing(b: Blocks, layer: int) -> Routing:
    s = b.shape
    scaled = s.key("expert_weights_scale") not in {None, 0.0, 1.0}
    if s.architecture == "gpt-oss":
        return Routing("softmax of the chosen", normed=False, scaled=scaled)
    if s.architecture != "deepseek2":
        return Routing(scaled=scaled)
    groups, used = s.key("expert_group_count"), s.key("expert_group_used_count")
    return Routing(
        "sigmoid" if s.key("expert_gating_func") == _SIGMOID else "softmax",
        normed=bool(s.key("expert_weights_norm")),
        scaled=scaled,
        biased_choice=_has(b, layer, "exp_probs_b.bias"),
        groups=groups if isinstance(groups, int) else 0,
        groups_used=used if isinstance(used, int) else 0,
    )


def _state_layer(b: Blocks, states: StateBlocks, source: Tensor, layer: int, last: bool) -> Tensor:  # noqa: FBT001
    found = b.norm(source)
    if b.shape.architecture == "mamba2":
        found = states.mamba2(found, normed=_has(b, layer, "ssm_norm.weight"))
    else:
        found = states.mamba(found)
    if last:
        found, source = b.output_rows(found), b.output_rows(source)
    return like("add", found, source)


def _hybrid_layer(b: Blocks, states: StateBlocks, source: Tensor, layer: int, last: bool) -> Tensor:  # noqa: FBT001
    layout = LAYOUTS[b.shape.architecture]
    attended = b.attention(_qkv(b, layout, b.norm(source), layer), layer)
    found = states.mamba2(b.norm(source), normed=_has(b, layer, "ssm_norm.weight"))
    inner = like("add", like("add", attended, found), source)
    if last:
        inner = b.output_rows(inner)
    found = b.feed_forward(b.norm(inner), int(b.shape.layers.ff[layer]))
    return like("add", found, inner)


_LAYERS: Final[Mapping[str, Callable[[Blocks, StateBlocks, Tensor, int, bool], Tensor]]] = {
    "attention": _attention_layer,
    "state": _state_layer,
    "hybrid": _hybrid_layer,
}


def _qkv(b: Blocks, layout: Layout, source: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    s = b.shape
    if _has(b, layer, "attn_qkv.weight"):
        q, k, v = b.fused_heads(source, layer)
    else:
        bias = _has(b, layer, "attn_q.bias")
        q = b.heads(source, s.heads[layer], s.head_dim_k[layer], bias=bias)
        k = b.heads(source, s.kv_heads[layer], s.head_dim_k[layer], bias=bias)
        v = b.heads(source, s.kv_heads[layer], s.head_dim_v[layer], bias=bias)
    if layout.qk_norm:
        q, k = b.norm(q), b.norm(k)
    q, k = b.rope(q), b.rope(k)
    return like("scale", q) if layout.scaled_queries else q, k, v


def _has(b: Blocks, layer: int, name: str) -> bool:
    return f"blk.{layer}.{name}" in b.tensor_names
