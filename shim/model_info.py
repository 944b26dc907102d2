"""Facts of a configured model that are known without loading it, as `shim.describe` returns them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the configuration.

    For a remote model, and for Python code, only `name`, `role`, `remote` and `identity` are known; the
    rest is None.

    Attributes:
        name: its name in the configuration.
        role: as in the configuration, or None.
        remote: whether an endpoint runs it.
        identity: equal for two models with the same weights (a link or a copy of one file), or with
            the same model of the same endpoint.
        file: the GGUF file, the first of several shards.
        architecture: llama.cpp's name of it.
        quantization: the main type of its tensors: `Q4_K_M`, `Q8_0`, `F16`, ...
        min_bits_per_weight: of its coarsest matrix (Q8_0: 8.5).
        parameters: the number of its weights.
        context_per_slot: tokens that one request can use.
        kv_bytes_per_token: of the KV cache as it is configured, all layers together; 0 for a model without.
    """

    name: str
    role: str | None
    remote: bool
    identity: str
    file: Path | None = None
    architecture: str | None = None
    quantization: str | None = None
    min_bits_per_weight: float | None = None
    parameters: int | None = None
    context_per_slot: int | None = None
    kv_bytes_per_token: int | None = None
