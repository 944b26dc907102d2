"""The demo's four models: found, or made by `tools/make_models.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shim import ConfigError

NAMES: Final = ("classifier", "embedder", "producer", "evaluator")
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_MAKER: Final = _REPOSITORY / "tools" / "make_models.py"


def default_folder() -> Path:
    """Where the models are unless told otherwise: `models/demo` of the repository."""
    return _REPOSITORY / "models" / "demo"


def demo_models(folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Each model's file by its name; what is missing is made (a minute), with progress to `say`.

    Raises:
        ConfigError: files are missing and cannot be made.
    """
    found = _find(folder)
    if len(found) == len(NAMES):
        return found
    missing = ", ".join(name for name in NAMES if name not in found)
    if not _MAKER.is_file():
        raise ConfigError(
            f"The demo's models ({missing}) are not in {folder}, and this installation has no "
            "tools/make_models.py to make them.",
            hint="Run `make demo` in a clone of the repository, or give `--models` a folder that "
            "was made there.",
        )
    say(f"making {missing} in {folder} (random weights, about a minute)")
    _make(folder, say)
    found = _find(folder)
    if len(found) < len(NAMES):
        raise ConfigError(f"{_MAKER.name} made only {', '.join(found) or 'nothing'} in {folder}.")
    return found


def _find(folder: Path) -> dict[str, Path]:
    matches = {name: sorted(folder.glob(f"{name}-*.gguf")) for name in NAMES}
    return {name: paths[0].absolute() for name, paths in matches.items() if paths}


def _make(folder: Path, say: Callable[[str], None]) -> None:
    command = [sys.executable, str(_MAKER), str(folder)]
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as maker:
        for line in maker.stdout or ():
            last = line.rstrip() or last
            say(line.rstrip())
    if maker.returncode != 0:
        raise ConfigError(
            f"{_MAKER.name} ended with code {maker.returncode}: {last}",
            hint="Run `make models` to see all of it.",
        )
