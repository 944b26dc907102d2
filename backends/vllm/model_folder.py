"""What a model folder in Hugging Face form says: its weights' bytes, its KV cache, its context.

Nothing is trusted: files are read within bounds, and a figure that is missing is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.foreign.foreign_json import BadJson, parse_json
from budget.errors import BadModelFile, LoadFailed

CONFIG: Final = "config.json"
_MOST_CONFIG_BYTES: Final = 8 << 20
_MOST_FILES: Final = 4096
_MOST: Final = 1 << 40
_WEIGHTS: Final = (".safetensors", ".bin", ".pt")
_BYTES: Final = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_DEFAULT_ELEMENT: Final = 2.0


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model in Hugging Face form.

    Attributes:
        files: its configuration first, then every file that a load reads.
        weights_bytes: the bytes of its weight files.
        kv_bytes_per_token: of the KV cache, over all layers; None where it cannot be told.
        context_length: the tokens that it was trained for; 0 where it does not say.
        architecture: the name of its class.
        quantization: how its weights are stored: a method of quantization or a type.
    """

    files: tuple[Path, ...]
    weights_bytes: int
    kv_bytes_per_token: int | None
    context_length: int
    architecture: str
    quantization: str


def read_folder(folder: Path) -> ModelFolder:
    """Read a model folder; no weights are opened.

    Raises:
        LoadFailed: the folder or its configuration is not there.
        BadModelFile: its configuration is damaged, or it has no weights.
    """
    config = _config(folder)
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    files = sorted(path for path in folder.iterdir() if path.is_file())[:_MOST_FILES]
    weights = [path for path in files if path.suffix in _WEIGHTS]
    safe = [path for path in weights if path.suffix == ".safetensors"]
    weights_bytes = sum(path.stat().st_size for path in safe or weights)
    if not weights_bytes:
        raise BadModelFile(
            f"{folder} holds no weights (.safetensors, .bin).", file=str(folder / CONFIG)
        )
    names = config.get("architectures")
    kept = config.get("quantization_config")
    method = kept.get("quant_method") if isinstance(kept, Mapping) else None
    return ModelFolder(
        files=(folder / CONFIG, *(path for path in files if path.name != CONFIG)),
        weights_bytes=weights_bytes,
        kv_bytes_per_token=_kv_bytes(text, config),
        context_length=_number(text, "max_position_embeddings") or 0,
        architecture=str(names[0]) if isinstance(names, list) and names else "",
        quantization=str(method or _type_of(text, config)),
    )


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_CONFIG_BYTES + 1)
    except OSError as error:
        raise LoadFailed(
            f"{path} cannot be read: {error.strerror}.",
            hint="vLLM needs a model folder in Hugging Face form, with config.json and safetensors.",
            file=str(path),
        ) from error
    try:
        config = parse_json(raw) if len(raw) <= _MOST_CONFIG_BYTES else None
    except BadJson as error:
        raise BadModelFile(f"{path} is not JSON: {error}.", file=str(path)) from None
    if not isinstance(config, Mapping):
        raise BadModelFile(f"{path} is no configuration of a model.", file=str(path))
    return config


def _kv_bytes(text: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """Bytes of K and V of a token over all layers; windows and shared layers take less."""
    layers, heads = _number(text, "num_hidden_layers"), _number(text, "num_attention_heads")
    if not layers or not heads:
        return None
    element = _BYTES.get(_type_of(text, config), _DEFAULT_ELEMENT)
    if rank := _number(text, "kv_lora_rank"):
        row = rank + (_number(text, "qk_rope_head_dim") or 0)
    else:
        width = _number(text, "head_dim") or (_number(text, "hidden_size") or 0) // heads
        row = 2 * (_number(text, "num_key_value_heads") or heads) * width
    return int(layers * row * element) or None


def _type_of(text: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The type of the activations, which is the KV cache's: newer folders call it `dtype`."""
    found = (table.get(name) for table in (text, config) for name in ("dtype", "torch_dtype"))
    return next((value for value in found if isinstance(value, str)), "")


def _number(table: Mapping[str, Any], name: str) -> int | None:
    value = table.get(name)
    return value if type(value) is int and 0 < value < _MOST else None
