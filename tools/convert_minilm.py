"""Convert a small BERT embedder (safetensors and a WordPiece vocabulary) to GGUF: F16 and Q8_0.

`python tools/convert_minilm.py FOLDER OUT` reads `model.safetensors`, `config.json` and `vocab.txt`.
Tensors and keys have the names of llama.cpp's architecture `bert`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python

if __name__ == "__main__":
    by_own_python()

import gguf
import numpy as np

from shim.llama_programs import run_program

NAME: Final = "MiniLM-L6-v2"
Array = np.ndarray[Any, np.dtype[Any]]
_TOP: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_BLOCK: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_BLOCK: Final = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_WHOLE: Final = ("position_embd.weight", "token_types.weight")
"""llama.cpp adds these to 32-bit rows, so they stay in 32 bits."""
_KEPT: Final = ("attn_v", "attn_output")
"""They stay F16 in the Q8_0 file: in Q8_0, the cosines of texts of one token would be below 0.999."""
_SPECIAL: Final = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused\d+)\]")


def convert(folder: Path, file: Path) -> None:
    """Write the model of a folder as one GGUF file with F16 matrices.

    Raises:
        ValueError: a tensor has no place in llama.cpp's architecture `bert`.
        OSError: a file of the folder is missing.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    out = gguf.GGUFWriter(file, "bert")
    _write_head(out, config)
    _write_vocabulary(out, (folder / "vocab.txt").read_text("utf-8").splitlines())
    for name, values in read_safetensors(folder / "model.safetensors").items():
        if (key := tensor_name(name)) is not None:
            keep = values.ndim == 1 or key in _WHOLE
            out.add_tensor(key, values.astype(np.float32 if keep else np.float16))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def read_safetensors(file: Path) -> Mapping[str, Array]:
    """The tensors of a file in 32, 16 or 64 bits, by name."""
    kinds = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(file, np.uint8, "r", offset=8 + size)
    return {
        name: data[slice(*one["data_offsets"])].view(kinds[one["dtype"]]).reshape(one["shape"])
        for name, one in header.items()
    }


def tensor_name(name: str) -> str | None:
    """llama.cpp's name of a tensor; None for the parts that an embedder does not use.

    Raises:
        ValueError: nothing is known of it.
    """
    name = name.removeprefix("bert.")
    if name == "embeddings.position_ids" or name.startswith(("pooler.", "cls.")):
        return None
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if (found := _BLOCK.fullmatch(stem)) and found[2] in _IN_BLOCK:
        return f"blk.{found[1]}.{_IN_BLOCK[found[2]]}.{kind}"
    raise ValueError(f"llama.cpp's architecture bert has no place for the tensor {name}")


def _write_head(out: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    out.add_name("all-MiniLM-L6-v2")
    out.add_license("apache-2.0")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_head_count(config["num_attention_heads"])
    out.add_layer_norm_eps(config["layer_norm_eps"])
    out.add_causal_attention(value=False)
    out.add_pooling_type(gguf.PoolingType.MEAN)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _write_vocabulary(out: gguf.GGUFWriter, words: list[str]) -> None:
    kinds = [
        gguf.TokenType.CONTROL if _SPECIAL.fullmatch(word) else gguf.TokenType.NORMAL
        for word in words
    ]
    out.add_tokenizer_model("bert")
    out.add_tokenizer_pre("default")
    out.add_token_list([spelled(word) for word in words])
    out.add_token_types(kinds)
    out.add_token_type_count(2)
    out.add_bos_token_id(words.index("[CLS]"))
    out.add_sep_token_id(words.index("[SEP]"))
    out.add_pad_token_id(words.index("[PAD]"))
    out.add_unk_token_id(words.index("[UNK]"))
    out.add_mask_token_id(words.index("[MASK]"))


def spelled(word: str) -> str:
    """A WordPiece as llama.cpp spells it: the beginning of a word is marked, not its continuation."""
    if _SPECIAL.fullmatch(word):
        return word
    return word[2:] if word.startswith("##") else f"▁{word}"


def main() -> None:
    """Convert the model of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    make_both(arguments.folder, arguments.out)


def make_both(folder: Path, out: Path) -> tuple[Path, Path]:
    """Write the F16 and the Q8_0 file into a folder; returns them."""
    names = f"{NAME}-F16.gguf", f"{NAME}-Q8_0.gguf"
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=out) as made:
        whole, small = (Path(made) / name for name in names)
        convert(folder, whole)
        kept = [word for name in _KEPT for word in ("--tensor-type", f"{name}=f16")]
        run_program("llama-quantize", *kept, str(whole), str(small), "Q8_0", "1")
        return whole.replace(out / whole.name), small.replace(out / small.name)


if __name__ == "__main__":
    main()
