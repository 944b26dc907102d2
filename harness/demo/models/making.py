"""Makes missing models with llama.cpp's own llama-quantize."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.demo.models.model_file import RECIPE_KEY, write_f16
from harness.demo.models.recipes import RECIPES, TINY_RECIPES, Recipe
from shim import BadModelFile
from shim.llama_programs import run_program
from shim.models import file_metadata

Progress = Callable[[str], None]


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
        OutsideError: llama.cpp refused a model that was made.
    """
    prefix = "tiny-" if tiny else ""
    return {
        recipe.name: make_model(recipe, Path(directory) / f"{prefix}{recipe.file_name}", progress)
        for recipe in (TINY_RECIPES if tiny else RECIPES)
    }


def make_model(recipe: Recipe, target: Path, progress: Progress = lambda _line: None) -> Path:
    """Make one model unless a whole file of this recipe is there; returns the file.

    Raises:
        ConfigError: `llama-quantize` or `llama-bench` is not installed.
        OutsideError: llama.cpp refused the model that was made.
    """
    if not _is_made(target, recipe):
        progress(f"making {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _make(recipe, target)
    return target


def _is_made(target: Path, recipe: Recipe) -> bool:
    try:
        return file_metadata(target).get(RECIPE_KEY) == recipe.digest
    except BadModelFile:
        return False


def _make(recipe: Recipe, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as folder:
        raw = Path(folder) / "f16.gguf"
        write_f16(recipe, raw)
        finished = raw
        if recipe.quantization != "F16":
            finished = Path(folder) / "quantized.gguf"
            run_program("llama-quantize", str(raw), str(finished), recipe.quantization, "2")
        _check_it_runs(recipe, finished)
        finished.replace(target)


def _check_it_runs(recipe: Recipe, path: Path) -> None:
    load = ("-m", str(path), "-r", "1", "-t", "2", "-p", "8")
    work = ("-n", "0", "-embd", "1") if recipe.pooled else ("-n", "2")
    run_program("llama-bench", *load, *work, "--no-warmup")
