"""Sparse GGUF files of real models' shapes: header, vocabulary and tensor table, no weights.

A file has its full apparent size and a few MB on disk, so that footprints of any model can be
measured and computed without downloading it: `python tools/shapes.py FOLDER [NAME ...]`.
Dimensions are those of the published models; weights read as zeros.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python

if __name__ == "__main__":
    by_own_python()

import gguf
import numpy as np

from backends.gguf.quantization import FILE_TYPES
from tools.shape_layouts import Role, Shape, tensors

_ALIGNMENT = 32
_FEW = 1024
_MLA_LITE = {
    "attention.kv_lora_rank": 512,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "attention.key_length_mla": 192,
    "attention.value_length_mla": 128,
    "rope.dimension_count": 64,
    "leading_dense_block_count": 1,
    "expert_shared_count": 2,
    "expert_weights_scale": 1.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 4096,
    "rope.scaling.yarn_log_multiplier": 0.0707,
}
_MLA = _MLA_LITE | {
    "attention.q_lora_rank": 1536,
    "leading_dense_block_count": 3,
    "expert_shared_count": 1,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
    "expert_group_count": 8,
    "expert_group_used_count": 4,
}
_ENCODER = {"attention.causal": False, "attention.layer_norm_epsilon": 1e-12}
_GEMMA2 = {
    "attention.sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    "attention.sliding_window": 1024,
    "rope.freq_base": 1e6,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}
_GPT_OSS = {
    "attention.sliding_window": 128,
    "rope.freq_base": 150000.0,
    "rope.dimension_count": 64,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 4096,
}
_MAMBA = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 1536,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 48,
}
_MAMBA2 = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 2048,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 32,
    "ssm.group_count": 1,
}
_FALCON_H1 = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 1536,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 24,
    "ssm.group_count": 1,
    "rope.dimension_count": 64,
    "rope.freq_base": 1e11,
}
_MINISTRAL3 = {
    "rope.dimension_count": 128,
    "rope.freq_base": 1e6,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 16384,
    "attention.temperature_scale": 0.1,
}
_GLM4_MOE = {
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
    "nextn_predict_layers": 1,
    "rope.dimension_count": 64,
}
_LFM2 = {"shortconv.l_cache": 3, "rope.freq_base": 1e6}
_LFM2_PATTERN = (0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0)
_QWEN35 = {
    "rope.dimension_count": 64,
    "rope.dimension_sections": [11, 11, 10, 0],
    "rope.freq_base": 1e7,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 16,
    "full_attention_interval": 4,
}
_GEMMA4 = {
    "attention.key_length_swa": 256,
    "attention.value_length_swa": 256,
    "rope.dimension_count": 512,
    "rope.dimension_count_swa": 256,
    "rope.freq_base_swa": 1e4,
    "rope.freq_base": 1e6,
    "embedding_length_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}
_WINDOWS_OF_SIX = (True, True, True, True, True, False)


def _moe(experts: int, used: int, n_ff_expert: int = 0) -> dict[str, Any]:
    return {"experts": experts, "experts_used": used, "n_ff_expert": n_ff_expert}


# Name, architecture, layers, width, vocabulary, feed-forward, heads, KV heads, head size.
_TABLE = (
    Shape("smollm2-135m", "llama", 30, 576, 49152, 1536, 9, 3, tied=True, context=8192),
    Shape("tinyllama-1.1b", "llama", 22, 2048, 32000, 5632, 32, 4, context=2048),
    Shape("llama-2-7b", "llama", 32, 4096, 32000, 11008, 32, 32, context=4096),
    Shape("llama-3.1-8b", "llama", 32, 4096, 128256, 14336, 32, 8, context=131072),
    Shape("llama-3.1-70b", "llama", 80, 8192, 128256, 28672, 64, 8, context=131072),
    Shape("qwen2.5-0.5b", "qwen2", 24, 896, 151936, 4864, 14, 2, tied=True, qkv_bias=True),
    Shape("qwen2.5-7b", "qwen2", 28, 3584, 152064, 18944, 28, 4, qkv_bias=True),
    Shape("qwen3-0.6b", "qwen3", 28, 1024, 151936, 3072, 16, 8, 128, tied=True, qk_norm=True),
    Shape("qwen3-8b", "qwen3", 36, 4096, 151936, 12288, 32, 8, 128, qk_norm=True),
    Shape("mixtral-8x7b", "llama", 32, 4096, 32000, 14336, 32, 8, **_moe(8, 2)),
    Shape(
        "qwen3-30b-a3b", "qwen3moe", 48, 2048, 151936, 6144, 32, 4, 128, qk_norm=True,
        **_moe(128, 8, 768),
    ),
    Shape(
        "gemma2-9b", "gemma2", 42, 3584, 256000, 14336, 16, 8, 256, context=8192, tied=True,
        extra=_GEMMA2,
    ),
    Shape(
        "gemma3-4b", "gemma3", 34, 2560, 262144, 10240, 8, 4, 256, context=131072, tied=True,
        qk_norm=True, extra=_GEMMA3,
    ),
    Shape(
        "phi3-mini-4k", "phi3", 32, 3072, 32064, 8192, 32, 32, context=4096,
        extra={"rope.dimension_count": 96, "attention.sliding_window": 2047},
    ),
    Shape(
        "deepseek2-lite", "deepseek2", 27, 2048, 102400, 10944, 16, 1, context=163840,
        extra=_MLA_LITE, **_moe(64, 6, 1408),
    ),
    Shape(
        "deepseek-v3", "deepseek2", 61, 7168, 129280, 18432, 128, 1, context=163840,
        extra=_MLA, **_moe(256, 8, 2048),
    ),
    Shape(
        "smollm3-3b", "smollm3", 36, 2048, 128256, 11008, 16, 4, context=65536, tied=True,
        extra={"rope.dimension_count": 128},
    ),
    Shape(
        "ministral-3-8b", "mistral3", 34, 4096, 131072, 14336, 32, 8, 128, context=262144,
        extra=_MINISTRAL3,
    ),
    Shape(
        "glm-4.5-air", "glm4moe", 47, 4096, 151552, 10944, 96, 8, 128, context=131072, qkv_bias=True,
        extra=_GLM4_MOE, **_moe(128, 8, 1408),
    ),
    Shape(
        "lfm2-1.2b", "lfm2", 16, 2048, 65536, 8192, 32, 8, context=128000, tied=True,
        kv_pattern=_LFM2_PATTERN, extra=_LFM2,
    ),
    Shape(
        "lfm2-8b-a1b", "lfm2moe", 24, 2048, 65536, 7168, 32, 8, context=128000, tied=True,
        kv_pattern=(0, 0, 8, 0),
        extra=_LFM2 | {"leading_dense_block_count": 2, "expert_gating_func": 2},
        **_moe(32, 4, 1792),
    ),
    Shape(
        "qwen3.5-27b", "qwen35", 64, 5120, 248320, 17408, 24, 4, 256, context=262144,
        extra=_QWEN35 | {"ssm.inner_size": 6144, "ssm.time_step_rank": 48},
    ),
    Shape(
        "qwen3.5-35b-a3b", "qwen35moe", 40, 2048, 248320, 0, 16, 2, 256, context=262144,
        extra=_QWEN35 | {"ssm.inner_size": 4096, "ssm.time_step_rank": 32,
                         "expert_shared_feed_forward_length": 512},
        **_moe(256, 8, 512),
    ),
    Shape(
        "gemma4-e4b", "gemma4", 42, 2560, 262144, 10240, 8, 2, 512, context=131072, tied=True,
        window_pattern=_WINDOWS_OF_SIX,
        extra=_GEMMA4 | {"attention.sliding_window": 512, "attention.shared_kv_layers": 18,
                         "embedding_length_per_layer_input": 256},
    ),
    Shape(
        "gemma4-26b-a4b", "gemma4", 30, 2816, 262144, 2112, 16, 8, 512, context=262144, tied=True,
        window_pattern=_WINDOWS_OF_SIX, kv_pattern=(8, 8, 8, 8, 8, 2),
        extra=_GEMMA4 | {"attention.sliding_window": 1024, "_keys_are_values": True},
        **_moe(128, 8, 704),
    ),
    Shape(
        "gemma4-31b", "gemma4", 60, 5376, 262144, 21504, 32, 16, 512, context=262144, tied=True,
        window_pattern=_WINDOWS_OF_SIX, kv_pattern=(16, 16, 16, 16, 16, 4),
        extra=_GEMMA4 | {"attention.sliding_window": 1024, "_keys_are_values": True},
    ),
    Shape(
        "gpt-oss-20b", "gpt-oss", 24, 2880, 201088, 2880, 64, 8, 64, context=131072,
        qkv_bias=True, extra=_GPT_OSS, **_moe(32, 4, 2880),
    ),
    Shape("mamba-130m", "mamba", 24, 768, 50280, 0, 0, 0, context=1048576, tied=True, extra=_MAMBA),
    Shape(
        "mamba2-370m", "mamba2", 48, 1024, 50288, 0, 0, 0, context=1048576, tied=True,
        extra=_MAMBA2,
    ),
    Shape(
        "falcon-h1-0.5b", "falcon-h1", 36, 1024, 32784, 2048, 8, 2, 64, context=16384,
        extra=_FALCON_H1,
    ),
    Shape(
        "nomic-embed-1.5", "nomic-bert", 12, 768, 30522, 3072, 12, 12, context=2048, tied=True,
        extra=_ENCODER | {"pooling_type": 1, "rope.freq_base": 1000.0},
    ),
    Shape(
        "bge-small", "bert", 12, 384, 30522, 1536, 12, 12, context=512, tied=True,
        extra=_ENCODER | {"pooling_type": 2},
    ),
)  # fmt: skip
_FILE_TYPE_NUMBERS = {name: number for number, name in FILE_TYPES.items()} | {"MXFP4": 38}
SHAPES: dict[str, Shape] = {shape.name: shape for shape in _TABLE}
"""The models by name; their matrices are F16 until `quantized` says otherwise."""


def quantized(shape: Shape, matrix: str) -> Shape:
    """The same model as a file of another type: a tensor type, or `Q4_K_M`, `Q5_K_M`, `MXFP4`."""
    return replace(shape, name=f"{shape.name}-{matrix.lower()}", matrix=matrix)


def write_shape(
    name: str, path: str | Path, *, file_type: str = "Q4_K_M", **overrides: Any
) -> Path:
    """Write the sparse file of a model of `SHAPES`; returns its path.

    Args:
        name: one of `SHAPES`.
        path: the file to write.
        file_type: see `quantized`.
        overrides: other values for fields of `Shape` (`n_layers=2`); `extra` is added to.

    Raises:
        KeyError: there is no such model.
    """
    base = SHAPES[name]
    extra = {**base.extra, **overrides.pop("extra", {})}
    return _write(replace(base, matrix=file_type, extra=extra, **overrides), Path(path))


def write(shape: Shape, folder: Path) -> Path:
    """Write the sparse file into a folder, named as the shape; returns its path."""
    return _write(shape, folder / f"{shape.name}.gguf")


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """Packs a vocabulary at once: the base class calls several functions for each of its tokens."""

    def _pack_val(self, val: Any, *how: Any, **named: Any) -> bytes:
        if not isinstance(val, list) or len(val) <= _FEW:
            return bytes(super()._pack_val(val, *how, **named))
        one = bytes(super()._pack_val(val[:1], *how, **named))
        head = one[: -8 - len(_packed(val[:1]))]
        return head + len(val).to_bytes(8, "little") + _packed(val)


def _packed(values: list[Any]) -> bytes:
    """The items of an array in GGUF: integers and floats of 32 bits, or texts behind their lengths."""
    if isinstance(values[0], str):
        texts = [value.encode() for value in values]
        return b"".join(part for text in texts for part in (len(text).to_bytes(8, "little"), text))
    return struct.pack(f"<{len(values)}{'f' if isinstance(values[0], float) else 'i'}", *values)


def _write(shape: Shape, path: Path) -> Path:
    writer = _Writer(str(path), shape.architecture)
    _add_keys(writer, shape)
    _add_vocabulary(writer, shape)
    data_bytes = 0
    for name, dims, role in tensors(shape):
        kind = gguf.GGMLQuantizationType[_tensor_type(shape, name, dims, role)]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(dims, dtype=np.int64)) // block * block_bytes
        # The writer wants numpy's order, and for a raw type the shape in bytes.
        as_bytes = (*reversed(dims[1:]), dims[0] // block * block_bytes)
        writer.add_tensor_info(name, as_bytes, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
        data_bytes += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(-(-header_bytes // _ALIGNMENT) * _ALIGNMENT + data_bytes)
    return path


# What llama.cpp's quantizer takes when rows are no multiple of a type's block, in its order.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _tensor_type(shape: Shape, name: str, dims: tuple[int, ...], role: Role) -> str:
    wanted = "F32" if role == "plain" else _mixed(shape, name, role)
    for kind in (wanted, _FALLBACKS.get(wanted, "F16")):
        if dims[0] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0:
            return kind
    return "F16"


def _mixed(shape: Shape, name: str, role: Role) -> str:
    """The type that llama.cpp's mixes give to a tensor (`src/llama-quant.cpp`)."""
    if shape.matrix == "MXFP4":
        return "MXFP4" if role == "experts" else "Q8_0"
    if not shape.matrix.endswith("_K_M"):
        quantized_output = shape.matrix == "Q4_0" and _makes_logits(shape, role)
        return "Q6_K" if quantized_output else shape.matrix
    base = shape.matrix.removesuffix("_M")
    if _makes_logits(shape, role):
        return "Q6_K"
    if role == "qkv":
        return {"Q4_K": "Q5_K", "Q5_K": "Q6_K"}[base]
    if role == "up":
        if shape.experts == 8 and "attn_v" in name:
            return "Q8_0"
        return "Q6_K" if _raised(int(name.split(".")[1]), shape.n_layers) else base
    return base


def _makes_logits(shape: Shape, role: Role) -> bool:
    return role == "output" or (role == "embedding" and shape.tied)


def _raised(layer: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _add_keys(writer: gguf.GGUFWriter, s: Shape) -> None:
    writer.add_name(s.name)
    writer.add_file_type(_FILE_TYPE_NUMBERS[s.matrix])
    keys: dict[str, Any] = {
        "block_count": s.n_layers,
        "context_length": s.context,
        "embedding_length": s.n_embd,
        "feed_forward_length": s.n_ff,
        "vocab_size": s.n_vocab,
        "attention.head_count": s.heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if s.heads:
        keys["attention.head_count_kv"] = s.kv_heads
    if s.head_dim:
        keys |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    if s.experts:
        keys |= {"expert_count": s.experts, "expert_used_count": s.experts_used}
    if s.n_ff_expert:
        keys["expert_feed_forward_length"] = s.n_ff_expert
    layers = range(s.n_layers)
    if s.kv_pattern:
        keys["attention.head_count_kv"] = [s.kv_heads_of(layer) for layer in layers]
    if s.window_pattern:
        keys["attention.sliding_window_pattern"] = [s.is_windowed(layer) for layer in layers]
    keys |= {name: value for name, value in s.extra.items() if not name.startswith("_")}
    _add_values(writer, s.architecture, keys)


def _add_values(writer: gguf.GGUFWriter, architecture: str, values: Mapping[str, Any]) -> None:
    for suffix, value in values.items():
        key = f"{architecture}.{suffix}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))


def _add_vocabulary(writer: gguf.GGUFWriter, s: Shape) -> None:
    if "bert" in s.architecture:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        types = [3] * len(special)
        writer.add_tokenizer_model("bert")
        writer.add_token_type_count(2)
        writer.add_bos_token_id(2)
        writer.add_sep_token_id(3)
        writer.add_mask_token_id(4)
    else:
        # llama.cpp looks for the fourth one in everything that is called phi-3.
        special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
        special += [f"<0x{i:02X}>" for i in range(256)]
        types = [2, 3, 3, 3] + [6] * 256
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * s.n_vocab)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    words = [f"\u2581w{i}" for i in range(s.n_vocab - len(special))]
    writer.add_token_list(special + words)
    writer.add_token_types(types + [1] * len(words))


def main() -> None:
    """Write the named shapes into a folder, or list what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("names", nargs="*", help=f"all by default: {', '.join(SHAPES)}")
    parser.add_argument("--type", default="Q4_K_M", help="F16, Q8_0, Q4_0, Q4_K_M, MXFP4, ...")
    options = parser.parse_args()
    if options.folder is None:
        for shape in SHAPES.values():
            print(f"{shape.name:<18}{shape.architecture:<12}{shape.n_layers:3} layers")
        return
    unknown = sorted(set(options.names) - set(SHAPES))
    if unknown:
        parser.error(f"no shape is called {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or SHAPES:
        path = options.folder / f"{name}-{options.type}.gguf"
        write_shape(name, path, file_type=options.type)
        size = path.stat()
        print(f"{path}  {size.st_size / 1e9:.2f} GB, on disk {size.st_blocks * 512 / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
