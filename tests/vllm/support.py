"""A model folder whose weights are not there, only their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
WEIGHTS = 40 << 20


def folder_of(path: Path, config: Any = LLAMA, weights: int = WEIGHTS) -> Path:
    """A folder with a configuration and a sparse file of weights."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    return path
