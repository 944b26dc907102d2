"""The demo's models: four real GGUF files of random weights, made on this machine when they are missing.

`demo_models(folder, say)` finds or makes them; nothing is downloaded. `TINY_RECIPES` are for tests.
"""

from harness.demo.models.making import default_folder, demo_models, make_model, make_models
from harness.demo.models.recipes import RECIPES, TINY_RECIPES, Recipe

__all__ = [
    "RECIPES",
    "TINY_RECIPES",
    "Recipe",
    "default_folder",
    "demo_models",
    "make_model",
    "make_models",
]
