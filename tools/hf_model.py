"""Make a small Llama, or one that sees, in the form that vLLM reads: `python tools/hf_model.py FOLDER`.

Its text is noise, but everything else is real: configuration, safetensors, a byte-level tokenizer, a chat
template. Nothing is downloaded, and the same recipe gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python

if __name__ == "__main__":
    by_own_python()

import numpy as np

from harness.demo.models.vocabulary import Vocabulary, byte_level
from tools import hf_vision

SPECIALS: Final = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_RECIPE_FILE: Final = "recipe.json"
_SURE: Final = 8.0
"""The first element of every token, far from 0 in all layers: against it a token can be made unlikely."""
_SPACES: Final = [9, 10, 13, 32]
_SPREADS: Final = {"model.embed_tokens.weight": 16.0, "lm_head.weight": 3.0}
"""Inputs that tell tokens apart, so that an answer is no single word; logits of which a few lead."""


@dataclass(frozen=True, slots=True)
class HfRecipe:
    """What one model is made of. vLLM's attention on CPUs needs heads of 32 elements or more."""

    n_layers: int = 4
    n_embd: int = 256
    n_ff: int = 512
    n_vocab: int = 2048
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    seed: int = 1
    sees: bool = False


def make_hf_model(folder: Path, recipe: HfRecipe = HfRecipe()) -> Path:
    """Make the model in a folder, unless it is there; returns the folder."""
    wanted = json.dumps(asdict(recipe))
    made = folder / _RECIPE_FILE
    if made.exists() and made.read_text("utf-8") == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as name:
        part = Path(name) / "model"
        part.mkdir()
        _write(part, recipe)
        (part / _RECIPE_FILE).write_text(wanted, "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def _write(folder: Path, recipe: HfRecipe) -> None:
    specials = [*SPECIALS, *hf_vision.SPECIALS] if recipe.sees else SPECIALS
    words = byte_level(recipe.n_vocab, pre="gpt-2", specials=specials, seed=recipe.seed)
    config, processor = _config(recipe, words), {}
    if recipe.sees:
        config = hf_vision.vision_config(config, words.special[hf_vision.IMAGE])
        processor = hf_vision.processor_files()
    texts = {
        **processor,
        "config.json": config,
        "generation_config.json": {"eos_token_id": words.special["<|im_end|>"]},
        "tokenizer.json": _tokenizer(words),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": recipe.context,
            "chat_template": TEMPLATE,
        },
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    _write_tensors(folder / "model.safetensors", recipe, words)


def _config(recipe: HfRecipe, words: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": recipe.n_embd,
        "intermediate_size": recipe.n_ff,
        "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.n_embd // recipe.heads,
        "vocab_size": recipe.n_vocab,
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": words.special["<|endoftext|>"],
        "eos_token_id": words.special["<|im_end|>"],
        "pad_token_id": words.special["<|endoftext|>"],
    }


def _tokenizer(words: Vocabulary) -> dict[str, Any]:
    """The tables in the form of the `tokenizers` library."""
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    ids = {token: i for i, token in enumerate(words.tokens) if token not in words.special}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **plain, "special": True}
            for token, number in words.special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_step, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_step, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": words.merges},
    }


def _write_tensors(path: Path, recipe: HfRecipe, words: Vocabulary) -> None:
    """Write the weights as safetensors: the length of a JSON header, the header, the bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in _tensors(recipe):
        end = at + 2 * int(np.prod(shape))
        header[_stored(name, recipe)] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    raw = json.dumps(header).encode()
    rng = np.random.Generator(np.random.SFC64(recipe.seed))
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, shape in _tensors(recipe):
            values = _weights(name, shape, words, rng)
            # The upper half of a 32-bit float is a bfloat16.
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def _weights(
    name: str, shape: tuple[int, ...], words: Vocabulary, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float32]]:
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(_SPREADS.get(name, 1.0) / np.sqrt(np.prod(shape[1:])))
    if name == "model.embed_tokens.weight":
        values[:, 0] = _SURE
    elif name == "lm_head.weight":
        # Lone bytes would make invalid UTF-8, an early end of text short answers, and JSON without an
        # end where a schema allows spaces.
        values[:, 0] = 0.0
        values[words.unlikely, 0] = -3.0
        values[_SPACES, 0] = -9.0
    return values


def _stored(name: str, recipe: HfRecipe) -> str:
    """The name in the file: a model that sees has its language model as a part."""
    beside = ("model.vision_model.", "model.connector.")
    if not recipe.sees or not name.startswith("model.") or name.startswith(beside):
        return name
    return name.replace("model.", "model.text_model.", 1)


def _tensors(recipe: HfRecipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    embd, ff = recipe.n_embd, recipe.n_ff
    kv = embd // recipe.heads * recipe.kv_heads
    yield "model.embed_tokens.weight", (recipe.n_vocab, embd)
    for layer in range(recipe.n_layers):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (embd,)
        for name, rows in (("q_proj", embd), ("k_proj", kv), ("v_proj", kv), ("o_proj", embd)):
            yield f"{block}.self_attn.{name}.weight", (rows, embd)
        yield f"{block}.post_attention_layernorm.weight", (embd,)
        for name, dims in (
            ("gate_proj", (ff, embd)),
            ("up_proj", (ff, embd)),
            ("down_proj", (embd, ff)),
        ):
            yield f"{block}.mlp.{name}.weight", dims
    yield "model.norm.weight", (embd,)
    yield "lm_head.weight", (recipe.n_vocab, embd)
    if recipe.sees:
        yield from hf_vision.vision_tensors(embd)


def main() -> None:
    """Make the model that the command line asks for and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=HfRecipe().n_layers)
    parser.add_argument("--sees", action="store_true", help="one that reads images")
    arguments = parser.parse_args()
    recipe = HfRecipe(n_layers=arguments.layers, sees=arguments.sees)
    print(make_hf_model(arguments.folder, recipe))


if __name__ == "__main__":
    main()
