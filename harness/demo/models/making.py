"""Finds the demo's models, and makes missing models with llama.cpp's own llama-quantize."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.demo.models.model_file import RECIPE_KEY, write_f16
from harness.demo.models.recipes import RECIPES, TINY_RECIPES, Recipe
from shim import BadModelFile, OutsideError
from shim.llama_programs import run_program
from shim.models import file_metadata
from shim.paths import cache_dir

Progress = Callable[[str], None]


def default_folder() -> Path:
    """Where the demo keeps its models unless it is told otherwise: in the user's cache folder."""
    return cache_dir() / "demo-models"


def demo_models(folder: Path, progress: Progress) -> dict[str, Path]:
    """Each model's file by its name. A file that is there is used, whatever made it.

    Args:
        folder: made when it is not there, with the missing models in it (a few seconds each).
        progress: gets a line for everything that is done.

    Raises:
        ConfigError: a model is missing and llama.cpp's programs are not installed.
        OutsideError: a model is missing and cannot be made, with the reason.
    """
    found = {recipe.name: sorted(folder.glob(f"{recipe.name}-*.gguf")) for recipe in RECIPES}
    try:
        return {
            recipe.name: found[recipe.name][0].absolute()
            if found[recipe.name]
            else make_model(recipe, folder.absolute() / recipe.file_name, progress)
            for recipe in RECIPES
        }
    except OSError as error:
        raise OutsideError(
            f"The demo's models cannot be made in {folder}: {error.strerror or error}.",
            hint="Give `--models` another folder; the models take 330 MB.",
        ) from error


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
