"""A small reranker of random weights: an encoder of BERT's kind with a head that makes one score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from harness.demo.models.vocabulary import word_pieces

_EMBD, _FF, _LAYERS, _HEADS, _VOCAB, _CONTEXT = 64, 128, 2, 2, 2048, 512


def write_reranker(path: Path, *, seed: int = 5) -> Path:
    """Write the model, the same bytes every time; returns its path."""
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("keepwarm reranker (random weights)")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_EMBD)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    words = word_pieces(_VOCAB, seed=seed)
    writer.add_tokenizer_model(words.model)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_type_count(2)
    writer.add_unk_token_id(words.special["[UNK]"])
    writer.add_sep_token_id(words.special["[SEP]"])
    writer.add_eos_token_id(words.special["[SEP]"])
    writer.add_pad_token_id(words.special["[PAD]"])
    writer.add_bos_token_id(words.special["[CLS]"])
    writer.add_mask_token_id(words.special["[MASK]"])
    rng = np.random.Generator(np.random.SFC64(seed))
    for name, dims in _tensors():
        if len(dims) == 1:
            fill = 0.0 if name.endswith("bias") else 1.0
            writer.add_tensor(name, np.full(dims, fill, np.float32))
            continue
        values = rng.standard_normal(tuple(reversed(dims)), np.float32) / np.float32(dims[0] ** 0.5)
        # ggml adds rows of these to F32, which it does of F32 alone.
        whole = name.startswith(("token_types", "position_embd"))
        writer.add_tensor(name, values if whole else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and dimensions, the row length first."""
    yield "token_embd.weight", (_EMBD, _VOCAB)
    yield "position_embd.weight", (_EMBD, _CONTEXT)
    yield "token_types.weight", (_EMBD, 2)
    yield from _with_bias("token_embd_norm", (_EMBD,))
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield from _with_bias(f"{block}.{name}", (_EMBD, _EMBD))
        yield from _with_bias(f"{block}.attn_output_norm", (_EMBD,))
        yield from _with_bias(f"{block}.ffn_up", (_EMBD, _FF))
        yield from _with_bias(f"{block}.ffn_down", (_FF, _EMBD))
        yield from _with_bias(f"{block}.layer_output_norm", (_EMBD,))
    yield from _with_bias("cls", (_EMBD, _EMBD))
    yield from _with_bias("cls.output", (_EMBD, 1))


def _with_bias(name: str, dims: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", dims
    yield f"{name}.bias", dims[-1:]
