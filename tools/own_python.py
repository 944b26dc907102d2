"""Programs of this folder run by the project's own Python, whichever Python starts them."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def by_own_python() -> None:
    """Start this program anew with the Python of `.venv`, unless keepwarm is installed where it runs."""
    if _is_installed():
        return
    own = ROOT / ".venv" / "bin" / "python"
    if not (ROOT / ".venv" / ".keepwarm-stamp").exists():
        sys.exit(
            f"{Path(sys.argv[0]).name} needs what `make setup` installs into .venv, and that is not there. "
            "Run `make setup` first."
        )
    os.execv(own, [str(own), *sys.argv])


def _is_installed() -> bool:
    try:
        metadata.version("keepwarm")
    except metadata.PackageNotFoundError:
        return False
    return True
