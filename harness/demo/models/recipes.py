"""What each model of random weights is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

_RECIPE_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
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
    def file_name(self) -> str:
        """`producer-Q4_K_M.gguf`, say."""
        return f"{self.name}-{self.quantization}.gguf"

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
"""The models by role."""

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
