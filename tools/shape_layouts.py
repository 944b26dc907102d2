"""The tensors of each architecture: names and dimensions as llama.cpp asks for them.

Sources: `src/models/*.cpp` (`load_arch_tensors`). A layout yields `(name, dims, role)`; the role says
how a quantization treats the tensor: `matrix`, `up` for what the mixes raise, `plain` for what stays
F32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["matrix", "up", "qkv", "experts", "embedding", "output", "plain"]
Tensor = tuple[str, tuple[int, ...], Role]


@dataclass(frozen=True)
class Shape:
    """The numbers of one model; `extra` are further keys without the architecture's prefix."""

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ff: int
    heads: int
    kv_heads: int
    head_dim: int = 0
    context: int = 32768
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_used: int = 0
    n_ff_expert: int = 0
    matrix: str = "F16"
    kv_pattern: tuple[int, ...] = ()
    """KV heads of layer after layer, again and again; 0 for a layer without attention."""
    window_pattern: tuple[bool, ...] = ()
    """Which layers have a sliding window, again and again."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Elements of one attention head."""
        return self.head_dim or self.n_embd // self.heads

    @property
    def kv_dim(self) -> int:
        """Elements of all key heads of a layer together."""
        return self.kv_heads * self.dim

    @property
    def n_trunk(self) -> int:
        """Layers without those that only predict further tokens."""
        return self.n_layers - int(self.extra.get("nextn_predict_layers", 0))

    def kv_heads_of(self, layer: int) -> int:
        """KV heads of one layer."""
        pattern = self.kv_pattern or (self.kv_heads,)
        return pattern[layer % len(pattern)]

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer has a sliding window, by the pattern."""
        return bool(self.window_pattern) and self.window_pattern[layer % len(self.window_pattern)]


def tensors(shape: Shape) -> Iterator[Tensor]:
    """All tensors of a model, in file order."""
    ends = _ENDS.get(shape.architecture, _decoder_ends)
    layer = _LAYERS.get(shape.architecture, _llama_layer)
    first, last = ends(shape)
    yield from first
    for i in range(shape.n_layers):
        yield from layer(shape, f"blk.{i}")
    yield from last


def _plain(name: str, *dims: int) -> Tensor:
    return name, dims, "plain"


def _norm(name: str, width: int) -> list[Tensor]:
    return [_plain(f"{name}.weight", width), _plain(f"{name}.bias", width)]


def _decoder_ends(s: Shape) -> tuple[list[Tensor], list[Tensor]]:
    first: list[Tensor] = [("token_embd.weight", (s.n_embd, s.n_vocab), "embedding")]
    norm = "token_embd_norm" if s.architecture.startswith("lfm2") else "output_norm"
    last: list[Tensor] = [_plain(f"{norm}.weight", s.n_embd)]
    per_layer = s.extra.get("embedding_length_per_layer_input", 0)
    if per_layer:
        width = per_layer * s.n_layers
        first.append(("per_layer_token_embd.weight", (width, s.n_vocab), "embedding"))
        first.append(("per_layer_model_proj.weight", (s.n_embd, width), "matrix"))
        first.append(_plain("per_layer_proj_norm.weight", per_layer))
    if s.architecture == "gemma4":
        first.append(_plain("rope_freqs.weight", s.head_dim // 2))
    if not s.tied:
        last.append(("output.weight", (s.n_embd, s.n_vocab), "output"))
    return first, last


def _encoder_ends(s: Shape) -> tuple[list[Tensor], list[Tensor]]:
    first: list[Tensor] = [
        ("token_embd.weight", (s.n_embd, s.n_vocab), "embedding"),
        _plain("token_types.weight", s.n_embd, 2),
    ]
    if s.architecture == "bert":
        first.append(_plain("position_embd.weight", s.n_embd, s.context))
    return first + _norm("token_embd_norm", s.n_embd), []


def _attention(s: Shape, block: str) -> Iterator[Tensor]:
    q = s.heads * s.dim
    yield _plain(f"{block}.attn_norm.weight", s.n_embd)
    parts: tuple[tuple[str, int, Role], ...] = (
        ("q", q, "matrix"),
        ("k", s.kv_dim, "matrix"),
        ("v", s.kv_dim, "up"),
    )
    for part, rows, role in parts:
        yield f"{block}.attn_{part}.weight", (s.n_embd, rows), role
        if s.qkv_bias:
            yield _plain(f"{block}.attn_{part}.bias", rows)
    yield f"{block}.attn_output.weight", (q, s.n_embd), "matrix"
    if s.qk_norm:
        yield _plain(f"{block}.attn_q_norm.weight", s.dim)
        yield _plain(f"{block}.attn_k_norm.weight", s.dim)


def _feed_forward(s: Shape, block: str) -> Iterator[Tensor]:
    yield _plain(f"{block}.ffn_norm.weight", s.n_embd)
    yield f"{block}.ffn_gate.weight", (s.n_embd, s.n_ff), "matrix"
    yield f"{block}.ffn_up.weight", (s.n_embd, s.n_ff), "matrix"
    yield f"{block}.ffn_down.weight", (s.n_ff, s.n_embd), "up"


def _expert_matrices(s: Shape, block: str) -> Iterator[Tensor]:
    ff = s.n_ff_expert or s.n_ff
    down: Role = "experts" if s.architecture == "gpt-oss" else "up"
    yield _plain(f"{block}.ffn_gate_inp.weight", s.n_embd, s.experts)
    yield f"{block}.ffn_gate_exps.weight", (s.n_embd, ff, s.experts), "experts"
    yield f"{block}.ffn_up_exps.weight", (s.n_embd, ff, s.experts), "experts"
    yield f"{block}.ffn_down_exps.weight", (ff, s.n_embd, s.experts), down


def _llama_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield from _attention(s, block)
    if s.experts:
        yield _plain(f"{block}.ffn_norm.weight", s.n_embd)
        yield from _expert_matrices(s, block)
    else:
        yield from _feed_forward(s, block)


def _gemma_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield from _attention(s, block)
    yield _plain(f"{block}.post_attention_norm.weight", s.n_embd)
    yield from _feed_forward(s, block)
    yield _plain(f"{block}.post_ffw_norm.weight", s.n_embd)


def _phi3_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield _plain(f"{block}.attn_norm.weight", s.n_embd)
    yield f"{block}.attn_qkv.weight", (s.n_embd, s.n_embd + 2 * s.kv_dim), "qkv"
    yield f"{block}.attn_output.weight", (s.n_embd, s.n_embd), "matrix"
    yield _plain(f"{block}.ffn_norm.weight", s.n_embd)
    yield f"{block}.ffn_up.weight", (s.n_embd, 2 * s.n_ff), "matrix"
    yield f"{block}.ffn_down.weight", (s.n_ff, s.n_embd), "up"


def _deepseek2_layer(s: Shape, block: str) -> Iterator[Tensor]:
    rank, rope = s.extra["attention.kv_lora_rank"], s.extra["rope.dimension_count"]
    # Older files have one matrix for keys and values, and heads as they are multiplied.
    folded = "" if "attention.key_length_mla" not in s.extra else "_mla"
    k_dim, v_dim = (s.extra[f"attention.{part}_length{folded}"] for part in ("key", "value"))
    yield _plain(f"{block}.attn_norm.weight", s.n_embd)
    q_rank = s.extra.get("attention.q_lora_rank", 0)
    if q_rank:
        yield _plain(f"{block}.attn_q_a_norm.weight", q_rank)
        yield f"{block}.attn_q_a.weight", (s.n_embd, q_rank), "matrix"
        yield f"{block}.attn_q_b.weight", (q_rank, s.heads * k_dim), "matrix"
    else:
        yield f"{block}.attn_q.weight", (s.n_embd, s.heads * k_dim), "matrix"
    yield _plain(f"{block}.attn_kv_a_norm.weight", rank)
    yield f"{block}.attn_kv_a_mqa.weight", (s.n_embd, rank + rope), "matrix"
    if folded:
        yield f"{block}.attn_k_b.weight", (k_dim - rope, rank, s.heads), "matrix"
        yield f"{block}.attn_v_b.weight", (rank, v_dim, s.heads), "up"
    else:
        yield f"{block}.attn_kv_b.weight", (rank, s.heads * (k_dim - rope + v_dim)), "up"
    yield f"{block}.attn_output.weight", (s.heads * v_dim, s.n_embd), "matrix"
    layer = int(block.removeprefix("blk."))
    if layer < s.extra["leading_dense_block_count"]:
        yield from _feed_forward(s, block)
        return
    yield _plain(f"{block}.ffn_norm.weight", s.n_embd)
    yield from _expert_matrices(s, block)
    if "expert_group_count" in s.extra:
        yield _plain(f"{block}.exp_probs_b.bias", s.experts)
    shared = s.n_ff_expert * s.extra["expert_shared_count"]
    yield f"{block}.ffn_gate_shexp.weight", (s.n_embd, shared), "matrix"
    yield f"{block}.ffn_up_shexp.weight", (s.n_embd, shared), "matrix"
    yield f"{block}.ffn_down_shexp.weight", (shared, s.n_embd), "up"


def _gpt_oss_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield from _attention(s, block)
    yield _plain(f"{block}.attn_output.bias", s.n_embd)
    yield _plain(f"{block}.attn_sinks.weight", s.heads)
    yield _plain(f"{block}.post_attention_norm.weight", s.n_embd)
    yield from _expert_matrices(s, block)
    yield _plain(f"{block}.ffn_gate_inp.bias", s.experts)
    yield _plain(f"{block}.ffn_gate_exps.bias", s.n_ff_expert, s.experts)
    yield _plain(f"{block}.ffn_up_exps.bias", s.n_ff_expert, s.experts)
    yield _plain(f"{block}.ffn_down_exps.bias", s.n_embd, s.experts)


def _glm4_moe_layer(s: Shape, block: str) -> Iterator[Tensor]:
    layer = int(block.removeprefix("blk."))
    yield from _attention(s, block)
    yield _plain(f"{block}.post_attention_norm.weight", s.n_embd)
    if layer < s.extra.get("leading_dense_block_count", 0):
        for name, dims, role in _feed_forward(s, block):
            if "norm" not in name:
                yield name, dims, role
    else:
        yield from _expert_matrices(s, block)
        yield _plain(f"{block}.exp_probs_b.bias", s.experts)
        yield from _shared_expert(s, block, s.n_ff_expert * s.extra["expert_shared_count"])
    if layer >= s.n_trunk:
        yield f"{block}.nextn.eh_proj.weight", (2 * s.n_embd, s.n_embd), "matrix"
        yield _plain(f"{block}.nextn.enorm.weight", s.n_embd)
        yield _plain(f"{block}.nextn.hnorm.weight", s.n_embd)


def _shared_expert(s: Shape, block: str, n_ff: int) -> Iterator[Tensor]:
    yield f"{block}.ffn_gate_shexp.weight", (s.n_embd, n_ff), "matrix"
    yield f"{block}.ffn_up_shexp.weight", (s.n_embd, n_ff), "matrix"
    yield f"{block}.ffn_down_shexp.weight", (n_ff, s.n_embd), "up"


def _lfm2_layer(s: Shape, block: str) -> Iterator[Tensor]:
    layer = int(block.removeprefix("blk."))
    kv_heads = s.kv_heads_of(layer)
    if kv_heads:
        yield from _attention(replace(s, kv_heads=kv_heads, qk_norm=True), block)
    else:
        yield _plain(f"{block}.attn_norm.weight", s.n_embd)
        yield _plain(f"{block}.shortconv.conv.weight", s.extra["shortconv.l_cache"], s.n_embd)
        yield f"{block}.shortconv.in_proj.weight", (s.n_embd, 3 * s.n_embd), "matrix"
        yield f"{block}.shortconv.out_proj.weight", (s.n_embd, s.n_embd), "matrix"
    if s.experts and layer >= s.extra.get("leading_dense_block_count", 0):
        yield _plain(f"{block}.ffn_norm.weight", s.n_embd)
        yield from _expert_matrices(s, block)
        yield _plain(f"{block}.exp_probs_b.bias", s.experts)
    else:
        yield from _feed_forward(s, block)


def _qwen2_moe_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield from _llama_layer(s, block)
    yield _plain(f"{block}.ffn_gate_inp_shexp.weight", s.n_embd)
    yield from _shared_expert(s, block, s.n_ff)


def _granite_hybrid_layer(s: Shape, block: str) -> Iterator[Tensor]:
    kv_heads = s.kv_heads_of(int(block.removeprefix("blk.")))
    if kv_heads:
        yield from _attention(replace(s, kv_heads=kv_heads), block)
    else:
        yield from _mamba2_layer(s, block)
    yield from _feed_forward(s, block)


def _qwen35_layer(s: Shape, block: str) -> Iterator[Tensor]:
    layer = int(block.removeprefix("blk."))
    inner, heads = s.extra["ssm.inner_size"], s.extra["ssm.time_step_rank"]
    mixed = inner + 2 * s.extra["ssm.group_count"] * s.extra["ssm.state_size"]
    if (layer + 1) % 4 == 0 or layer >= s.n_trunk:
        for name, dims, role in _attention(replace(s, qk_norm=True), block):
            both = "attn_q.weight" in name
            yield name, ((dims[0], 2 * dims[1]) if both else dims), role
    else:
        yield _plain(f"{block}.attn_norm.weight", s.n_embd)
        yield f"{block}.attn_qkv.weight", (s.n_embd, mixed), "qkv"
        yield f"{block}.attn_gate.weight", (s.n_embd, inner), "matrix"
        yield _plain(f"{block}.ssm_conv1d.weight", s.extra["ssm.conv_kernel"], mixed)
        yield _plain(f"{block}.ssm_dt.bias", heads)
        yield _plain(f"{block}.ssm_a", heads)
        yield f"{block}.ssm_beta.weight", (s.n_embd, heads), "matrix"
        yield f"{block}.ssm_alpha.weight", (s.n_embd, heads), "matrix"
        yield _plain(f"{block}.ssm_norm.weight", inner // heads)
        yield f"{block}.ssm_out.weight", (inner, s.n_embd), "matrix"
    yield _plain(f"{block}.post_attention_norm.weight", s.n_embd)
    if s.experts:
        yield from _expert_matrices(s, block)
        yield _plain(f"{block}.ffn_gate_inp_shexp.weight", s.n_embd)
        yield from _shared_expert(s, block, s.extra["expert_shared_feed_forward_length"])
    else:
        for name, dims, role in _feed_forward(s, block):
            if "norm" not in name:
                yield name, dims, role
    if layer >= s.n_trunk:
        yield f"{block}.nextn.eh_proj.weight", (2 * s.n_embd, s.n_embd), "matrix"
        yield _plain(f"{block}.nextn.enorm.weight", s.n_embd)
        yield _plain(f"{block}.nextn.hnorm.weight", s.n_embd)


def _gemma4_layer(s: Shape, block: str) -> Iterator[Tensor]:
    layer = int(block.removeprefix("blk."))
    windowed = s.is_windowed(layer)
    head = s.extra["attention.key_length_swa"] if windowed else s.head_dim
    has_kv = layer < s.n_layers - s.extra.get("attention.shared_kv_layers", 0)
    own = replace(s, head_dim=head, kv_heads=s.kv_heads_of(layer), qk_norm=True)
    for name, dims, role in _attention(own, block):
        part = name.rpartition("attn_")[2]
        # In larger models the values of layers without a window are their keys.
        keys_alone = not windowed and s.extra.get("_keys_are_values")
        if not part.startswith(("k", "v")) or (has_kv and (part[0] == "k" or not keys_alone)):
            yield name, dims, role
    yield _plain(f"{block}.post_attention_norm.weight", s.n_embd)
    yield from _feed_forward(s, block)
    yield _plain(f"{block}.post_ffw_norm.weight", s.n_embd)
    yield _plain(f"{block}.layer_output_scale.weight", 1)
    if s.experts:
        yield _plain(f"{block}.ffn_gate_inp.weight", s.n_embd, s.experts)
        yield _plain(f"{block}.ffn_gate_inp.scale", s.n_embd)
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield _plain(f"{block}.{name}.weight", s.n_embd)
        ff = s.n_ff_expert
        yield f"{block}.ffn_gate_up_exps.weight", (s.n_embd, 2 * ff, s.experts), "experts"
        yield f"{block}.ffn_down_exps.weight", (ff, s.n_embd, s.experts), "up"
        yield _plain(f"{block}.ffn_down_exps.scale", s.experts)
    per_layer = s.extra.get("embedding_length_per_layer_input", 0)
    if per_layer:
        yield f"{block}.inp_gate.weight", (s.n_embd, per_layer), "matrix"
        yield f"{block}.proj.weight", (per_layer, s.n_embd), "matrix"
        yield _plain(f"{block}.post_norm.weight", s.n_embd)


def _mamba_layer(s: Shape, block: str) -> Iterator[Tensor]:
    inner, state = s.extra["ssm.inner_size"], s.extra["ssm.state_size"]
    rank, kernel = s.extra["ssm.time_step_rank"], s.extra["ssm.conv_kernel"]
    yield _plain(f"{block}.attn_norm.weight", s.n_embd)
    yield f"{block}.ssm_in.weight", (s.n_embd, 2 * inner), "matrix"
    yield _plain(f"{block}.ssm_conv1d.weight", kernel, inner)
    yield _plain(f"{block}.ssm_conv1d.bias", inner)
    yield f"{block}.ssm_x.weight", (inner, rank + 2 * state), "matrix"
    yield _plain(f"{block}.ssm_dt.weight", rank, inner)
    yield _plain(f"{block}.ssm_dt.bias", inner)
    yield _plain(f"{block}.ssm_a", state, inner)
    yield _plain(f"{block}.ssm_d", inner)
    yield f"{block}.ssm_out.weight", (inner, s.n_embd), "matrix"


def _state_space(s: Shape, block: str, mixed: int, heads: int) -> Iterator[Tensor]:
    """The selective state space of Mamba 2, without its norm and way out."""
    inner = s.extra["ssm.inner_size"]
    yield f"{block}.ssm_in.weight", (s.n_embd, inner + mixed + heads), "matrix"
    yield _plain(f"{block}.ssm_conv1d.weight", s.extra["ssm.conv_kernel"], mixed)
    yield _plain(f"{block}.ssm_conv1d.bias", mixed)
    yield _plain(f"{block}.ssm_dt.bias", heads)
    yield _plain(f"{block}.ssm_a", 1, heads)
    yield _plain(f"{block}.ssm_d", 1, heads)


def _mamba2_layer(s: Shape, block: str) -> Iterator[Tensor]:
    inner, groups = s.extra["ssm.inner_size"], s.extra["ssm.group_count"]
    heads = s.extra["ssm.time_step_rank"]
    mixed = inner + 2 * groups * s.extra["ssm.state_size"]
    yield _plain(f"{block}.attn_norm.weight", s.n_embd)
    yield from _state_space(s, block, mixed, heads)
    yield _plain(f"{block}.ssm_norm.weight", inner // groups, groups)
    yield f"{block}.ssm_out.weight", (inner, s.n_embd), "matrix"


def _falcon_h1_layer(s: Shape, block: str) -> Iterator[Tensor]:
    inner, state = s.extra["ssm.inner_size"], s.extra["ssm.state_size"]
    heads, groups = s.extra["ssm.time_step_rank"], s.extra["ssm.group_count"]
    mixed = inner + 2 * groups * state
    yield from _state_space(s, block, mixed, heads)
    yield f"{block}.ssm_out.weight", (inner, s.n_embd), "matrix"
    for name, dims, role in (*_attention(s, block), *_feed_forward(s, block)):
        # llama.cpp asks for this norm without the usual suffix.
        yield name.replace("ffn_norm.weight", "ffn_norm"), dims, role


def _bert_layer(s: Shape, block: str) -> Iterator[Tensor]:
    parts: tuple[tuple[str, Role], ...] = (("q", "matrix"), ("k", "matrix"), ("v", "up"))
    for part, role in parts:
        yield f"{block}.attn_{part}.weight", (s.n_embd, s.n_embd), role
        yield _plain(f"{block}.attn_{part}.bias", s.n_embd)
    yield f"{block}.attn_output.weight", (s.n_embd, s.n_embd), "matrix"
    yield _plain(f"{block}.attn_output.bias", s.n_embd)
    yield from _norm(f"{block}.attn_output_norm", s.n_embd)
    yield f"{block}.ffn_up.weight", (s.n_embd, s.n_ff), "matrix"
    yield _plain(f"{block}.ffn_up.bias", s.n_ff)
    yield f"{block}.ffn_down.weight", (s.n_ff, s.n_embd), "up"
    yield _plain(f"{block}.ffn_down.bias", s.n_embd)
    yield from _norm(f"{block}.layer_output_norm", s.n_embd)


def _nomic_bert_layer(s: Shape, block: str) -> Iterator[Tensor]:
    yield f"{block}.attn_qkv.weight", (s.n_embd, 3 * s.n_embd), "qkv"
    yield f"{block}.attn_output.weight", (s.n_embd, s.n_embd), "matrix"
    yield from _norm(f"{block}.attn_output_norm", s.n_embd)
    yield f"{block}.ffn_gate.weight", (s.n_embd, s.n_ff), "matrix"
    yield f"{block}.ffn_up.weight", (s.n_embd, s.n_ff), "matrix"
    yield f"{block}.ffn_down.weight", (s.n_ff, s.n_embd), "up"
    yield from _norm(f"{block}.layer_output_norm", s.n_embd)


_ENDS: dict[str, Callable[[Shape], tuple[list[Tensor], list[Tensor]]]] = {
    "bert": _encoder_ends,
    "nomic-bert": _encoder_ends,
}
_LAYERS: dict[str, Callable[[Shape, str], Iterator[Tensor]]] = {
    "bert": _bert_layer,
    "deepseek2": _deepseek2_layer,
    "falcon-h1": _falcon_h1_layer,
    "gemma2": _gemma_layer,
    "gemma3": _gemma_layer,
    "gemma4": _gemma4_layer,
    "glm4moe": _glm4_moe_layer,
    "gpt-oss": _gpt_oss_layer,
    "granitehybrid": _granite_hybrid_layer,
    "lfm2": _lfm2_layer,
    "lfm2moe": _lfm2_layer,
    "mamba": _mamba_layer,
    "mamba2": _mamba2_layer,
    "nomic-bert": _nomic_bert_layer,
    "phi3": _phi3_layer,
    "qwen2moe": _qwen2_moe_layer,
    "qwen35": _qwen35_layer,
    "qwen35moe": _qwen35_layer,
}
