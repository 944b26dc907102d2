"""Which models the demo has: two trained ones come with keepwarm, real ones are used where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.demo.reports.trained import trained_model
from shim.paths import cache_dir

REAL: Final[Mapping[str, str]] = {
    "ear": "whisper-tiny.en",
    "classifier": "MiniLM-L6-v2-Q8_0.gguf",
    "embedder": "MiniLM-L6-v2-F16.gguf",
    "answerer": "SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
}
"""Where `make models` puts the real ones within its folder."""


@dataclass(frozen=True, slots=True)
class DemoModels:
    """The file or folder of each model that is there, by its name.

    `speech` is the interpreter that runs the ear; without it there is no ear.
    """

    files: Mapping[str, Path]
    speech: Path | None = None


def default_folder() -> Path:
    """Where the demo looks for real models, and puts the trained ones, unless it is told otherwise."""
    return cache_dir() / "demo-models"


def demo_models(folder: Path, speech: Path | None, progress: Callable[[str], None]) -> DemoModels:
    """The models that are there; the trained ones are made in the folder.

    Args:
        folder: that of `make models`; made when it is not there.
        speech: an interpreter with faster-whisper; None, or one that is not there, for no ear.
        progress: gets a line for each model that is missing.

    Raises:
        ConfigError: `llama-quantize` is not installed.
        OutsideError: a trained model cannot be made, with the reason.
    """
    hears = speech if speech is not None and speech.exists() else None
    found = dict[str, Path]()
    for name, where in REAL.items():
        if name == "ear" and hears is None:
            progress("the ear is left out: it needs an interpreter with faster-whisper (--speech)")
        elif (folder / where).exists():
            found[name] = (folder / where).absolute()
        else:
            progress(f"the {name} is left out: {folder / where} is not there (make models)")
    found["producer"] = trained_model("producer", "Q4_K_M", folder.absolute())
    found["evaluator"] = trained_model("evaluator", "Q8_0", folder.absolute())
    return DemoModels(found, hears if "ear" in found else None)
