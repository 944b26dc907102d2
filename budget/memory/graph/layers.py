"""One function for each way to build a layer. Sources: `src/models/*.cpp` of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from budget.memory.graph.blocks import Blocks
from budget.memory.graph.delta import delta_net, gated_attention
from budget.memory.graph.encoder import encoder_layer
from budget.memory.graph.gemma4 import gemma4_layer
from budget.memory.graph.latent import latent_attention, unfolded_attention
from budget.memory.graph.layouts import Layout
from budget.memory.graph.moe import Routing, experts
from budget.memory.graph.recurrent_state import StateBlocks
from budget.memory.graph.tensors import F32, GraphTensor, graph_input, like

_SIGMOID: Final = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


@dataclass(slots=True)
class Build:
    """A graph under construction: its blocks, how it is laid out, and the number of its last layer.

    `own_inputs` are those of single layers, where there are any.
    """

    b: Blocks
    states: StateBlocks
    layout: Layout
    last: int
    attention_scale: GraphTensor
    own_inputs: GraphTensor | None = None

    @classmethod
    def of(cls, b: Blocks, layout: Layout) -> Build:
        """The beginning of one."""
        last = b.shape.n_layers - b.shape.n_layers_nextn - 1
        return cls(b, StateBlocks(b), layout, last, graph_input(b.tokens, F32))

    def wanted(self, layer: int, *sources: GraphTensor) -> tuple[GraphTensor, ...]:
        """Of the last layer's results the rows that go on; of others all."""
        if layer != self.last or self.layout.late:
            return sources
        return tuple(self.b.output_rows(source) for source in sources)


def _attention_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b, layout = build.b, build.layout
    found, residual = build.wanted(layer, _attended(build, b.norm(source), layer), source)
    if b.has(layer, "post_attention_norm.weight") and b.has(layer, "post_ffw_norm.weight"):
        found = b.norm(found)
    inner = like("add", found, residual)
    found = _feed_forward(build, b.norm(inner), layer)
    if b.has(layer, "post_ffw_norm.weight"):
        found = b.norm(found)
    return like("add", inner, found) if layout.joined else like("add", found, inner)


def _attended(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b, s, layout = build.b, build.b.shape, build.layout
    scale = build.attention_scale if s.key("attention.temperature_scale") else None
    if s.architecture == "deepseek2":
        return (latent_attention if s.is_mla else unfolded_attention)(b, source, layer, scale)
    q, k, v = b.qkv(source, layer)
    if b.has(layer, "attn_q_norm.weight"):
        q, k = b.norm(q), b.norm(k)
    if not layout.unrotated or (layer + 1) % layout.unrotated:
        q, k = b.rope(q), b.rope(k)
    if layout.scaled_queries:
        q = like("scale", q)
    if scale is not None:
        q = like("mul", q, scale)
    return b.attention((q, k, v), layer, sinks=b.has(layer, "attn_sinks.weight"))


def _feed_forward(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b, s = build.b, build.b.shape
    if not b.has(layer, "ffn_gate_inp.weight"):
        return b.feed_forward(source, s.n_ff[layer], layer, joined=build.layout.joined)
    found = experts(b, source, layer, routing(b, layer))
    shared = b.tensors.get(f"blk.{layer}.ffn_up_shexp.weight")
    if shared is None:
        return found
    beside = b.feed_forward(source, shared.dims[1])
    if b.has(layer, "ffn_gate_inp_shexp.weight"):
        beside = like("mul", beside, like("unary", b.mat_mul(1, source)))
    return like("add", found, beside)


def routing(b: Blocks, layer: int) -> Routing:
    """How a layer's experts are chosen and weighed."""
    s = b.shape
    scaled = s.key("expert_weights_scale") not in {None, 0.0, 1.0}
    if s.architecture == "gpt-oss":
        return Routing("softmax of the chosen", normed=False, scaled=scaled)
    if s.architecture not in {"deepseek2", "glm4moe", "lfm2moe"}:
        return Routing(scaled=scaled)
    gating = s.key("expert_gating_func") or (_SIGMOID if s.architecture == "glm4moe" else 0)
    groups, used = s.key("expert_group_count"), s.key("expert_group_used_count")
    return Routing(
        "sigmoid" if gating == _SIGMOID else "softmax",
        normed=s.architecture == "lfm2moe" or bool(s.key("expert_weights_norm")),
        scaled=scaled,
        biased_choice=b.has(layer, "exp_probs_b.bias"),
        groups=groups if isinstance(groups, int) else 0,
        groups_used=used if isinstance(used, int) else 0,
    )


def _mamba_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b, states = build.b, build.states
    found = b.norm(source)
    if build.layout.layer == "mamba2":
        found = states.mamba2(found, normed=b.has(layer, "ssm_norm.weight"))
    else:
        found = states.mamba(found)
    found, source = build.wanted(layer, found, source)
    return like("add", found, source)


def _falcon_h1_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b = build.b
    q, k, v = b.qkv(b.norm(source), layer)
    attended = b.attention((b.rope(q), b.rope(k), v), layer)
    found = build.states.mamba2(b.norm(source), normed=b.has(layer, "ssm_norm.weight"))
    (inner,) = build.wanted(layer, like("add", like("add", attended, found), source))
    found = b.feed_forward(b.norm(inner), b.shape.n_ff[layer], layer)
    return like("add", found, inner)


def _encoder_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    return encoder_layer(build.b, source, layer, lambda *rows: build.wanted(layer, *rows))


def _delta_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b = build.b
    found = b.graph.expand(b.norm(source))
    if b.shape.recurrent_layers[layer]:
        found = delta_net(build.states, found)
    else:
        found = gated_attention(b, found, layer)
    inner = like("add", found, source)
    return like("add", _feed_forward(build, b.norm(inner), layer), inner)


def _short_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    b = build.b
    found = b.norm(source)
    if b.shape.recurrent_layers[layer]:
        found = build.states.short_convolution(found)
    else:
        found = _attended(build, found, layer)
    found, source = build.wanted(layer, found, source)
    inner = like("add", source, found)
    return like("add", inner, _feed_forward(build, b.norm(inner), layer))


def _gemma4_layer(build: Build, source: GraphTensor, layer: int) -> GraphTensor:
    return gemma4_layer(build.b, source, layer, build.own_inputs)


LAYERS: Final[Mapping[str, Callable[[Build, GraphTensor, int], GraphTensor]]] = {
    "attention": _attention_layer,
    "mamba": _mamba_layer,
    "mamba2": _mamba_layer,
    "falcon-h1": _falcon_h1_layer,
    "encoder": _encoder_layer,
    "delta": _delta_layer,
    "short": _short_layer,
    "gemma4": _gemma4_layer,
}
"""By `Layout.layer`."""
