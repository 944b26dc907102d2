"""Make four real GGUF models of random weights: `python tools/make_models.py FOLDER [--tiny]`.

Their text is noise, but everything else is real: architectures, tokenizers, quantizations, and files
big enough that loading them costs something. Nothing is downloaded; the same recipe makes the same
bytes. A model that is already there, made by this recipe, is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.gguf import read_header
from backends.llama.binaries import find_binary, library_env
from budget.errors import BadModelFile
from tools import vocabulary

Progress = Callable[[str], None]
Tensor = tuple[str, tuple[int, ...]]

_RECIPE_KEY = "keepwarm.recipe"
_RECIPE_VERSION = 2
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


@dataclass(frozen=True)
class Recipe:
    """What one model is made of."""

    name: str
    architecture: str
    quantization: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_vocab: int
    heads: int
    kv_heads: int
    seed: int
    context: int = 8192
    tied: bool = False

    @property
    def digest(self) -> str:
        """Changes with anything that changes the file."""
        text = f"{_RECIPE_VERSION}:{self!r}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def kv_dim(self) -> int:
        """Elements of all key heads of a layer together."""
        return self.n_embd // self.heads * self.kv_heads

    @property
    def pooled(self) -> bool:
        """Whether this is an encoder that gives one vector per text."""
        return self.architecture == "nomic-bert"


RECIPES = (
    Recipe("classifier", "llama", "Q4_K_M", 8, 512, 1536, 32_000, 8, 4, seed=1),
    Recipe("embedder", "nomic-bert", "F16", 6, 512, 2048, 30_000, 8, 8, seed=2),
    Recipe("producer", "qwen2", "Q4_K_M", 8, 1024, 2816, 66_560, 16, 4, seed=3, tied=True),
    Recipe("evaluator", "llama", "Q8_0", 6, 768, 2048, 32_000, 12, 4, seed=4),
)
"""The models of the demo, by role."""

TINY_RECIPES = (
    replace(RECIPES[0], n_layers=2, n_embd=256, n_ff=512, n_vocab=2048, heads=4, kv_heads=2),
    replace(RECIPES[1], n_layers=2, n_embd=256, n_ff=512, n_vocab=2048, heads=4, kv_heads=4),
    replace(
        RECIPES[2],
        quantization="Q4_0",
        n_layers=3,
        n_embd=256,
        n_ff=768,
        n_vocab=4096,
        heads=4,
        kv_heads=2,
    ),
    replace(RECIPES[3], n_layers=2, n_embd=256, n_ff=512, n_vocab=2048, heads=4, kv_heads=2),
)
"""The same roles in 1 to 3 MB each, for tests of engines; the producer is Q4_0."""


def make_models(
    directory: str | Path, *, tiny: bool = False, progress: Progress = lambda _line: None
) -> dict[str, Path]:
    """Make what is missing in `directory`; returns each model's file by its name.

    Args:
        directory: made when it is not there.
        tiny: the small variants; their files are named `tiny-NAME-...gguf`.
        progress: gets a line for everything that is done.

    Raises:
        ConfigError: `llama-quantize` or `llama-bench` is not installed.
        RuntimeError: llama.cpp refused a model that was made.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    for recipe in TINY_RECIPES if tiny else RECIPES:
        prefix = "tiny-" if tiny else ""
        target = folder / f"{prefix}{recipe.name}-{recipe.quantization}.gguf"
        made[recipe.name] = make_model(recipe, target, progress)
    return made


def make_model(recipe: Recipe, target: Path, progress: Progress = lambda _line: None) -> Path:
    """Make one model unless it is there; returns its file."""
    if not _is_made(target, recipe):
        progress(f"{target.name}: making it")
        _make(recipe, target)
        progress(f"{target.name}: {target.stat().st_size / 1e6:.0f} MB, loads")
    return target


def _is_made(target: Path, recipe: Recipe) -> bool:
    try:
        return read_header(target).metadata.get(_RECIPE_KEY) == recipe.digest
    except BadModelFile:
        return False


def _make(recipe: Recipe, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as folder:
        raw = Path(folder) / "f16.gguf"
        _write_f16(recipe, raw)
        finished = raw
        if recipe.quantization != "F16":
            finished = Path(folder) / "quantized.gguf"
            _llama("llama-quantize", str(raw), str(finished), recipe.quantization, "2")
        _check_it_runs(recipe, finished)
        finished.replace(target)


def _check_it_runs(recipe: Recipe, path: Path) -> None:
    load = ("-m", str(path), "-r", "1", "-t", "2", "-p", "8")
    work = ("-n", "0", "-embd", "1") if recipe.pooled else ("-n", "2")
    _llama("llama-bench", *load, *work, "--no-warmup")


def _llama(name: str, *arguments: str) -> None:
    binary = find_binary(name)
    done = subprocess.run(
        [str(binary), *arguments],
        env=os.environ | library_env(binary) | {"GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{tail}")


def _write_f16(recipe: Recipe, path: Path) -> None:
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
    writer.add_string(_RECIPE_KEY, recipe.digest)
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


def main() -> None:
    """Make the models that the command line asks for and print where they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tiny", action="store_true", help="1 to 3 MB each, for tests")
    arguments = parser.parse_args()
    models = make_models(
        arguments.directory, tiny=arguments.tiny, progress=lambda line: print(line, flush=True)
    )
    for name, path in models.items():
        print(f"{name:<12}{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
