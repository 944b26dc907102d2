"""The shape of a model: every number of its GGUF header that its bytes follow from.

A `ModelShape` is made by `backends.gguf` and read by the closed form. It is plain data: building
one reads no file. Names follow llama.cpp's hyperparameters (`src/llama-hparams.h`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from budget.memory.layer_table import LayerTable, layer_table
from budget.memory.tensor_table import TensorTable, tensor_table

Scalar = str | int | float | bool
MetadataValue = Scalar | tuple[Scalar, ...]

Pooling = Literal["none", "mean", "cls", "last", "rank"]

GGML_TYPES: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F64": (1, 8),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "Q1_0": (128, 18),
    "Q2_0": (64, 18),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
"""ggml's tensor types: elements per block, and bytes per block (ggml's block structures)."""

_PREDICTING_UNLOADED = frozenset(
    {"bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe"}
    | {"glm5-next", "hy-v3", "mimo2", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe"}
    | {"qwen3next", "step35"}
)
"""Architectures whose layers for further tokens are not loaded (`load_mtp` in `src/models/*.cpp`)."""

_NORM_CALLED_EMBEDDING = frozenset({"lfm2", "lfm2moe"})
"""Architectures whose output norm is called `token_embd_norm` (`LLM_TENSOR_OUTPUT_NORM_LFM2`)."""


def row_bytes(ggml_type: str, n_elements: int) -> int:
    """Bytes of one row of `n_elements`, in whole blocks, as `ggml_row_size` counts them.

    Raises:
        KeyError: the type is not in `GGML_TYPES`.
    """
    block_elements, block_bytes = GGML_TYPES[ggml_type]
    return -(-n_elements // block_elements) * block_bytes


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor: its ggml type by name (`Q4_K`), its dimensions (row length first), its bytes."""

    name: str
    ggml_type: str
    dims: tuple[int, ...]
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def layer(self) -> int | None:
        """The layer that a `blk.N.` tensor belongs to; `None` for the others."""
        head, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if head == "blk" and number.isdecimal() else None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the bytes of a model follow from.

    Tuples with "per layer" in their comment have `n_layers` entries, in layer order. A number that
    the architecture does not have is 0, so that it can be multiplied without asking.
    """

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_vocab: int
    context_length: int
    tensors: tuple[TensorShape, ...] = field(repr=False)

    # Attention, per layer. A layer without attention (recurrent) has 0 KV heads.
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dim_k: tuple[int, ...]
    head_dim_v: tuple[int, ...]
    # Feed-forward rows, per layer: as `feed_forward_length` says, and of one expert. A mixtral-like
    # file gives its experts' rows in the former: both hold the same number then.
    n_ff: tuple[int, ...]
    n_ff_expert: tuple[int, ...]

    n_experts: int = 0
    n_experts_used: int = 0
    n_experts_shared: int = 0
    n_layers_dense_lead: int = 0
    """Leading layers without experts."""
    n_layers_nextn: int = 0
    """Trailing layers (counted in `n_layers`) that only predict further tokens (MTP)."""

    sliding_window: int = 0
    """Tokens of the window; 0 when every layer sees everything."""
    window_layers: tuple[bool, ...] = ()
    """Per layer: whether it attends within the sliding window only."""
    recurrent_layers: tuple[bool, ...] = ()
    """Per layer: whether it keeps recurrent state (a hybrid layer keeps both kinds)."""
    n_layers_shared_kv: int = 0
    """Trailing layers that reuse an earlier layer's KV cache and have none of their own."""

    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Rank of the compressed KV of multi-head latent attention; 0 without MLA."""
    head_dim_k_mla: int = 0
    head_dim_v_mla: int = 0

    ssm_conv_kernel: int = 0
    ssm_inner: int = 0
    ssm_state: int = 0
    ssm_groups: int = 0
    ssm_dt_rank: int = 0
    """Time-step rank; for Mamba-2 like layers, the number of state heads."""

    rope_dims: int = 0
    rope_original_context: int = 0

    causal: bool = True
    pooling: Pooling | None = None
    """How an embedding model pools; `None` when the file does not say."""
    tied_embeddings: bool = False
    """Whether the output layer reuses the input embedding (there is no `output.weight`)."""

    metadata: Mapping[str, MetadataValue] = field(default_factory=dict, repr=False)
    """Every scalar and small array of the header, by its full key."""
    table: TensorTable = field(init=False, repr=False, compare=False)
    """The tensors as arrays."""

    layers: LayerTable = field(init=False, repr=False, compare=False)
    """The layers as arrays."""

    def __post_init__(self) -> None:
        table = tensor_table(
            self.tensors,
            self.n_layers,
            GGML_TYPES,
            n_unused=self.n_layers_nextn if self.architecture in _PREDICTING_UNLOADED else 0,
            norm_is_output=self.architecture in _NORM_CALLED_EMBEDDING,
            # Layers with a window rotate by another base, and have no factors.
            sharing=[not w for w in self.window_layers] if self.architecture == "gemma4" else (),
        )
        object.__setattr__(self, "table", table)
        layers = layer_table(
            self.n_layers,
            self.heads,
            self.kv_heads,
            (self.head_dim_k, self.head_dim_v),
            self.n_ff,
            (self.window_layers, self.recurrent_layers),
        )
        object.__setattr__(self, "layers", layers)

    @property
    def is_mla(self) -> bool:
        """Whether the KV cache holds compressed latents (keys only)."""
        return self.kv_lora_rank > 0 and self.head_dim_k_mla > 0 and self.head_dim_v_mla > 0

    @property
    def is_recurrent(self) -> bool:
        """Whether any layer keeps recurrent state."""
        return any(self.recurrent_layers)

    @property
    def convolution_tokens(self) -> int:
        """The last tokens that a recurrent layer's convolution keeps."""
        kernel = self.key("shortconv.l_cache") or self.ssm_conv_kernel
        return max(kernel - 1, 0) if isinstance(kernel, int) else 0

    @property
    def has_attention(self) -> bool:
        """Whether any layer has a KV cache."""
        return any(self.kv_heads)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors in the file, without alignment."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.n_elements for tensor in self.tensors)

    def tensor(self, name: str) -> TensorShape | None:
        """The tensor of that name, or `None`."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def key(self, suffix: str) -> MetadataValue | None:
        """A value by its key without the architecture's prefix (`attention.scale`), or `None`."""
        return self.metadata.get(f"{self.architecture}.{suffix}")
