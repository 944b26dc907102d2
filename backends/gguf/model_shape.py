"""From metadata to a `ModelShape`, with the defaults that llama.cpp gives to each architecture.

Sources: `src/llama-model.cpp` (`load_hparams`) and `src/models/*.cpp` (`load_arch_hparams`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from backends.gguf.checks import reject, shown
from backends.gguf.skim import SkimmedArray
from backends.gguf.table import HeaderValue, TensorInfo
from budget.memory.shape import MetadataValue, ModelShape, Pooling, TensorShape

_MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
_MAX_ARCHITECTURE_LENGTH: Final = 64
_MAX_NUMBER: Final = 1 << 31
_POOLINGS: Final[Mapping[int, Pooling]] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


@dataclass(frozen=True, slots=True)
class _Window:
    """A sliding window's period, whether the dense layer comes first in it, and a default size."""

    period: int
    dense_first: bool = False
    default_tokens: int = 0


_WINDOWS: Final[Mapping[str, _Window]] = {
    "afmoe": _Window(4),
    "cohere2": _Window(4),
    "cohere2moe": _Window(4, dense_first=True),
    "exaone-moe": _Window(4),
    "exaone4": _Window(4),
    "gemma-embedding": _Window(6),
    "gemma2": _Window(2, default_tokens=4096),
    "gemma3": _Window(6),
    "gemma3n": _Window(5),
    "gpt-oss": _Window(2),
    "laguna": _Window(4, dense_first=True),
    "llama4": _Window(4, default_tokens=8192),
    "mellum": _Window(4),
    "modern-bert": _Window(3, dense_first=True),
    "olmo2": _Window(4),
    "plamo3": _Window(8),
    "smallthinker": _Window(4, dense_first=True, default_tokens=4096),
}
# Architectures whose every layer keeps recurrent state, and those that mark recurrent layers by
# having no KV heads, or by a period of full attention.
_ALL_RECURRENT: Final = frozenset(
    {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "falcon-h1"}
)
_RECURRENT_WITHOUT_KV: Final = frozenset(
    {"jamba", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "plamo2"}
    | {"kimi-linear"}
)
_RECURRENT_BY_PERIOD: Final = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_FOREIGN_PARTS: Final = {
    "v": "a vision tower",
    "a": "an audio tower",
    "mm": "a projector",
    "mtp": "a head that predicts several tokens",
}
"""Parts that only other programs keep in a model's file, by the first word of their tensors' names."""
_NON_CAUSAL: Final = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert"}
    | {"neo-bert", "eurobert", "gemma-embedding", "t5encoder"}
)


def build_shape(
    path: Path,
    metadata: Mapping[str, HeaderValue],
    offsets: Mapping[str, int],
    tensors: Sequence[TensorInfo],
) -> ModelShape:
    """The shape that a header describes.

    Raises:
        BadModelFile: a hyperparameter is missing, of the wrong type or impossible (`check` is
            `shape`, `offset` that of the value).
    """
    return _Builder(path, metadata, offsets, tensors).build()


class _Builder:
    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, HeaderValue],
        offsets: Mapping[str, int],
        tensors: Sequence[TensorInfo],
    ) -> None:
        self._path = path
        self._metadata = metadata
        self._offsets = offsets
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._architecture = self._text("general.architecture", "")
        if not self._architecture:
            self._reject("general.architecture", "is missing, so this is not a model")
        if len(self._architecture) > _MAX_ARCHITECTURE_LENGTH:
            self._reject(
                "general.architecture",
                f"has {len(self._architecture)} characters; {_MAX_ARCHITECTURE_LENGTH} are allowed",
            )
        if self._key("block_count") not in metadata:
            self._reject(
                self._key("block_count"),
                "is missing, so this is not a language model (a projector or an adapter, perhaps)",
            )
        self._check_parts(tensors)
        self._layers = self._number("block_count", least=1, most=_MAX_LAYERS)
        self._embd = self._number("embedding_length", least=1)

    def _check_parts(self, tensors: Sequence[TensorInfo]) -> None:
        first_words = {tensor.name.partition(".")[0] for tensor in tensors}
        parts = [
            f"{what} ({word}.*)" for word, what in _FOREIGN_PARTS.items() if word in first_words
        ]
        if not parts:
            return
        reject(
            self._path,
            "shape",
            f"has tensors of {' and of '.join(parts)}, as exports of Ollama do: llama.cpp loads no "
            "text model that has them in its own file.",
            offset=0,
            hint="Fetch a file of llama.cpp's converter (its projectors are files of their own) or "
            "leave the model to Ollama and give its `url`.",
        )

    def build(self) -> ModelShape:
        heads = self._per_layer("attention.head_count", 0)
        kv_heads = self._kv_heads(heads)
        ff = self._per_layer("feed_forward_length", 0)
        window_tokens, windowed = self._window()
        experts = self._number("expert_count")
        causal_default = self._architecture not in _NON_CAUSAL
        pooling = self._number("pooling_type", default=-1, least=-1)
        return ModelShape(
            name=self._text("general.name", self._path.stem),
            architecture=self._architecture,
            n_layers=self._layers,
            n_embd=self._embd,
            n_vocab=self._vocab(),
            context_length=self._number("context_length"),
            tensors=tuple(
                TensorShape(t.name, t.ggml_type, t.dims, t.n_bytes) for t in self._tensors.values()
            ),
            heads=heads,
            kv_heads=kv_heads,
            head_dim_k=self._head_dims("key", heads, windowed),
            head_dim_v=self._head_dims("value", heads, windowed),
            n_ff=ff,
            n_ff_expert=self._per_layer("expert_feed_forward_length", ff if experts else 0),
            n_experts=experts,
            n_experts_used=max(self._per_layer("expert_used_count", 0)),
            n_experts_shared=self._number("expert_shared_count"),
            n_layers_dense_lead=self._number("leading_dense_block_count"),
            n_layers_nextn=self._number("nextn_predict_layers", most=self._layers),
            sliding_window=window_tokens,
            window_layers=windowed,
            recurrent_layers=self._recurrent(kv_heads, ff),
            n_layers_shared_kv=self._shared_kv(),
            q_lora_rank=self._number("attention.q_lora_rank"),
            kv_lora_rank=self._number("attention.kv_lora_rank"),
            head_dim_k_mla=self._number("attention.key_length_mla"),
            head_dim_v_mla=self._number("attention.value_length_mla"),
            **self._recurrence(),
            rope_dims=self._number("rope.dimension_count", default=self._rope_default(heads)),
            rope_original_context=self._number("rope.scaling.original_context_length"),
            causal=bool(self._metadata.get(self._key("attention.causal"), causal_default)),
            pooling=_POOLINGS.get(pooling),
            tied_embeddings=bool(self._tensors) and "output.weight" not in self._tensors,
            metadata=self._small_metadata(),
        )

    def _kv_heads(self, heads: tuple[int, ...]) -> tuple[int, ...]:
        found = self._per_layer("attention.head_count_kv", heads)
        if self._architecture not in _RECURRENT_BY_PERIOD:
            return found
        # The number is given for all layers; those with state have no cache.
        recurrent = self._recurrent(found, found)
        return tuple(0 if state else n for n, state in zip(found, recurrent, strict=True))

    def _recurrence(self) -> dict[str, int]:
        return {
            "ssm_conv_kernel": self._number("ssm.conv_kernel"),
            "ssm_inner": self._number("ssm.inner_size"),
            "ssm_state": self._number("ssm.state_size"),
            "ssm_groups": self._number("ssm.group_count"),
            "ssm_dt_rank": self._number("ssm.time_step_rank"),
        }

    def _key(self, suffix: str) -> str:
        return f"{self._architecture}.{suffix}"

    def _reject(self, key: str, what: str) -> NoReturn:
        reject(self._path, "shape", f"{key} {what}.", offset=self._offsets.get(key, 0))

    def _text(self, key: str, default: str) -> str:
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            self._reject(key, f"is {shown(value)}; a text is allowed")
        return value

    def _checked(self, key: str, value: HeaderValue, least: int, most: int) -> int:
        if type(value) is bool or not isinstance(value, int) or not least <= value <= most:
            self._reject(
                key, f"is {shown(value)}; a whole number from {least} to {most} is allowed"
            )
        return value

    def _number(
        self, suffix: str, *, default: int = 0, least: int = 0, most: int = _MAX_NUMBER
    ) -> int:
        key = self._key(suffix)
        return self._checked(key, self._metadata.get(key, default), least, most)

    def _per_layer(self, suffix: str, default: int | tuple[int, ...]) -> tuple[int, ...]:
        """A number for each layer: llama.cpp takes one for all, or an array of exactly as many."""
        key = self._key(suffix)
        value = self._metadata.get(key, default)
        if isinstance(value, SkimmedArray) or (
            isinstance(value, tuple) and len(value) != self._layers
        ):
            count = value.count if isinstance(value, SkimmedArray) else len(value)
            self._reject(key, f"has {count} entries for {self._layers} layers")
        entries = value if isinstance(value, tuple) else (value,) * self._layers
        return tuple(self._checked(key, entry, 0, _MAX_NUMBER) for entry in entries)

    def _head_dims(
        self, which: str, heads: tuple[int, ...], windowed: tuple[bool, ...]
    ) -> tuple[int, ...]:
        default = self._embd // heads[0] if heads[0] else 0
        dense = self._number(f"attention.{which}_length", default=default)
        in_window = self._number(f"attention.{which}_length_swa", default=dense)
        if not any(heads):
            return (0,) * self._layers
        return tuple(in_window if w else dense for w in windowed)

    def _rope_default(self, heads: tuple[int, ...]) -> int:
        return self._number(
            "attention.key_length", default=self._embd // heads[0] if heads[0] else 0
        )

    def _window(self) -> tuple[int, tuple[bool, ...]]:
        rule = self._rule()
        none = (False,) * self._layers
        tokens = self._number(
            "attention.sliding_window", default=rule.default_tokens if rule else 0
        )
        key = self._key("attention.sliding_window_pattern")
        pattern = self._metadata.get(key)
        if not tokens or (rule is None and not isinstance(pattern, tuple)):
            return 0, none
        if isinstance(pattern, tuple):
            return tokens, tuple(flag != 0 for flag in self._flags(key, pattern))
        period = self._number(
            "attention.sliding_window_pattern", default=rule.period if rule else 0
        )
        dense_at = 0 if rule and rule.dense_first else period - 1
        layers = range(self._layers)
        return tokens, tuple(not period or layer % period != dense_at for layer in layers)

    def _rule(self) -> _Window | None:
        return _WINDOWS.get(self._architecture)

    def _flags(self, key: str, pattern: tuple[object, ...]) -> tuple[object, ...]:
        if len(pattern) != self._layers:
            self._reject(key, f"has {len(pattern)} entries for {self._layers} layers")
        return pattern

    def _recurrent(self, kv_heads: tuple[int, ...], ff: tuple[int, ...]) -> tuple[bool, ...]:
        layers = range(self._layers)
        if self._architecture in _ALL_RECURRENT:
            return (True,) * self._layers
        if self._architecture.startswith("nemotron_h"):
            return tuple(not kv_heads[i] and not ff[i] for i in layers)
        if self._architecture in _RECURRENT_WITHOUT_KV:
            return tuple(not count for count in kv_heads)
        if self._architecture in _RECURRENT_BY_PERIOD:
            marked = self._metadata.get(self._key("attention.recurrent_layers"))
            if isinstance(marked, tuple) and len(marked) == self._layers:
                return tuple(bool(flag) for flag in marked)
            period = self._number("full_attention_interval", default=4, least=1)
            trunk = self._layers - self._number("nextn_predict_layers", most=self._layers)
            return tuple(i < trunk and (i + 1) % period != 0 for i in layers)
        return (False,) * self._layers

    def _shared_kv(self) -> int:
        # gemma3n keeps KV in its first 20 layers; the number is in llama.cpp, not in the file.
        default = max(self._layers - 20, 0) if self._architecture == "gemma3n" else 0
        return self._number("attention.shared_kv_layers", default=default, most=self._layers)

    def _vocab(self) -> int:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        counted = tokens.count if isinstance(tokens, SkimmedArray) else 0
        n_vocab = counted or self._number("vocab_size")
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.dims) != 2:
            return n_vocab
        if counted and embedding.dims[1] != counted:
            self._reject(
                "tokenizer.ggml.tokens",
                f"has {counted} entries and the embedding {embedding.dims[1]} rows",
            )
        return embedding.dims[1]

    def _small_metadata(self) -> dict[str, MetadataValue]:
        return {
            key: value
            for key, value in self._metadata.items()
            if not isinstance(value, SkimmedArray) and key != "tokenizer.chat_template"
        }
