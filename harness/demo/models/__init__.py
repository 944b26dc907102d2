"""Models for tests and benchmarks: four GGUF files of random weights, made where they are missing.

`make_models(folder)` makes them; nothing is downloaded. `TINY_RECIPES` are of 1 to 3 MB each.
"""

from harness.demo.models.making import make_model, make_models
from harness.demo.models.recipes import RECIPES, TINY_RECIPES, Recipe

__all__ = [
    "RECIPES",
    "TINY_RECIPES",
    "Recipe",
    "make_model",
    "make_models",
]
