"""Writes a model of random weights as a GGUF file of 16-bit floats, with the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from harness.demo.models import vocabulary
from harness.demo.models.recipes import Recipe

Tensor = tuple[str, tuple[int, ...]]

RECIPE_KEY: Final = "keepwarm.recipe"
"""The metadata key of the digest of the recipe that a file was made by."""

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ message.content }}{{ eos_token }}{% else %}[{{ message.role }}] {{ message.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
# The final norm leaves vectors of unit mean square, so this is the spread of the logits: wide enough
# that a few tokens lead, and those with a row of zeros (the end of text) are hardly ever drawn.
_LOGIT_SPREAD = 3.0


def write_f16(recipe: Recipe, path: Path) -> None:
    """Write the model, before it is quantized."""
    writer = gguf.GGUFWriter(path, recipe.architecture)
    words = _vocabulary(recipe)
    _add_metadata(writer, recipe)
    _add_tokenizer(writer, recipe, words)
    tensors = list(_tensors(recipe))
    for name, dims in tensors:
        dtype = _dtype(name, dims)
        n_bytes = int(np.prod(dims)) * dtype.itemsize
        writer.add_tensor_info(name, tuple(reversed(dims)), dtype, n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(recipe.seed))
    for name, dims in tensors:
        writer.write_tensor_data(_weights(recipe, name, dims, words, rng))
    writer.close()


def _weights(
    recipe: Recipe,
    name: str,
    dims: tuple[int, ...],
    words: vocabulary.Vocabulary,
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    if len(dims) == 1:
        fill = 0.0 if name.endswith("bias") else 1.0
        return np.full(dims, fill, np.float32)
    makes_logits = name == ("token_embd.weight" if recipe.tied else "output.weight")
    spread = (_LOGIT_SPREAD if makes_logits else 1.0) / np.sqrt(dims[0])
    values = rng.standard_normal((dims[1], dims[0]), np.float32)
    values *= np.float32(spread)
    if makes_logits:
        values[words.unlikely] = 0.0
    return values.astype(_dtype(name, dims))


def _dtype(name: str, dims: tuple[int, ...]) -> np.dtype[Any]:
    # ggml adds token types to the embeddings, and adds F32 only.
    is_matrix = len(dims) > 1 and name != "token_types.weight"
    return np.dtype(np.float16 if is_matrix else np.float32)


def _vocabulary(recipe: Recipe) -> vocabulary.Vocabulary:
    if recipe.pooled:
        return vocabulary.word_pieces(recipe.n_vocab, seed=recipe.seed)
    if recipe.name == "evaluator":
        return vocabulary.sentence_pieces(recipe.n_vocab, seed=recipe.seed)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pre = "qwen2" if recipe.architecture == "qwen2" else "gpt-2"
    return vocabulary.byte_level(recipe.n_vocab, pre=pre, specials=specials, seed=recipe.seed)


def _add_metadata(writer: gguf.GGUFWriter, recipe: Recipe) -> None:
    writer.add_name(f"keepwarm {recipe.name} (random weights)")
    writer.add_string(RECIPE_KEY, recipe.digest)
    writer.add_context_length(recipe.context)
    writer.add_embedding_length(recipe.n_embd)
    writer.add_block_count(recipe.n_layers)
    writer.add_feed_forward_length(recipe.n_ff)
    writer.add_head_count(recipe.heads)
    writer.add_head_count_kv(recipe.kv_heads)
    writer.add_rope_dimension_count(recipe.n_embd // recipe.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if recipe.pooled:
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(value=False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(recipe.n_vocab)


def _add_tokenizer(writer: gguf.GGUFWriter, recipe: Recipe, words: vocabulary.Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    if words.pre:
        writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    _add_special_tokens(writer, words.special)
    if recipe.pooled:
        writer.add_token_type_count(2)
    else:
        writer.add_chat_template(_CHATML if "<|im_end|>" in words.special else _BRACKETS)


def _add_special_tokens(writer: gguf.GGUFWriter, special: Mapping[str, int]) -> None:
    if "<|im_end|>" in special:
        writer.add_bos_token_id(special["<|endoftext|>"])
        writer.add_eos_token_id(special["<|im_end|>"])
        writer.add_pad_token_id(special["<|endoftext|>"])
        writer.add_add_bos_token(value=False)
    elif "</s>" in special:
        writer.add_bos_token_id(special["<s>"])
        writer.add_eos_token_id(special["</s>"])
        writer.add_unk_token_id(special["<unk>"])
        # The chat template writes the first token itself.
        writer.add_add_bos_token(value=False)
    else:
        writer.add_unk_token_id(special["[UNK]"])
        writer.add_sep_token_id(special["[SEP]"])
        writer.add_pad_token_id(special["[PAD]"])
        writer.add_bos_token_id(special["[CLS]"])
        writer.add_mask_token_id(special["[MASK]"])


def _tensors(recipe: Recipe) -> Iterator[Tensor]:
    """Names and dimensions (row length first), in file order."""
    embd = recipe.n_embd
    yield "token_embd.weight", (embd, recipe.n_vocab)
    if recipe.pooled:
        yield "token_types.weight", (embd, 2)
        yield from _norm("token_embd_norm", embd)
        for layer in range(recipe.n_layers):
            yield from _encoder_layer(recipe, f"blk.{layer}")
        return
    for layer in range(recipe.n_layers):
        yield from _decoder_layer(recipe, f"blk.{layer}")
    yield "output_norm.weight", (embd,)
    if not recipe.tied:
        yield "output.weight", (embd, recipe.n_vocab)


def _norm(name: str, embd: int) -> Iterator[Tensor]:
    yield f"{name}.weight", (embd,)
    yield f"{name}.bias", (embd,)


def _encoder_layer(recipe: Recipe, block: str) -> Iterator[Tensor]:
    embd, ff = recipe.n_embd, recipe.n_ff
    yield f"{block}.attn_qkv.weight", (embd, embd + 2 * recipe.kv_dim)
    yield f"{block}.attn_output.weight", (embd, embd)
    yield from _norm(f"{block}.attn_output_norm", embd)
    yield f"{block}.ffn_gate.weight", (embd, ff)
    yield f"{block}.ffn_up.weight", (embd, ff)
    yield f"{block}.ffn_down.weight", (ff, embd)
    yield from _norm(f"{block}.layer_output_norm", embd)


def _decoder_layer(recipe: Recipe, block: str) -> Iterator[Tensor]:
    embd, ff, kv = recipe.n_embd, recipe.n_ff, recipe.kv_dim
    yield f"{block}.attn_norm.weight", (embd,)
    for name, rows in (("attn_q", embd), ("attn_k", kv), ("attn_v", kv)):
        yield f"{block}.{name}.weight", (embd, rows)
        if recipe.architecture == "qwen2":
            yield f"{block}.{name}.bias", (rows,)
    yield f"{block}.attn_output.weight", (embd, embd)
    yield f"{block}.ffn_norm.weight", (embd,)
    yield f"{block}.ffn_gate.weight", (embd, ff)
    yield f"{block}.ffn_up.weight", (embd, ff)
    yield f"{block}.ffn_down.weight", (ff, embd)
