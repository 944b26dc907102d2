"""Get promtool, which checks alert rules: that of the machine, or Debian's, unpacked into `build/promtool`.

`apt-get download` installs nothing and needs no rights. A second run does nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "promtool"
LIMIT_S = 300.0


def promtool() -> Path | None:
    """The program, where it is here."""
    found = shutil.which("promtool")
    own = FOLDER / "usr" / "bin" / "promtool"
    return Path(found) if found else own if own.exists() else None


def fetch() -> Path:
    """Get the program unless it is here, and return its path.

    Raises:
        SystemExit: it cannot be had; the message says what to install.
    """
    here = promtool()
    if here is not None:
        return here
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        run("apt-get", "download", "prometheus")
        (package,) = FOLDER.glob("prometheus_*.deb")
        run("dpkg-deb", "-x", package.name, ".")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = getattr(error, "stderr", None) or error
        sys.exit(
            f"promtool cannot be had: {why}\nInstall Prometheus (Debian: `apt install prometheus`)."
        )
    package.unlink()
    return FOLDER / "usr" / "bin" / "promtool"


def run(*command: str) -> None:
    """Run a command in the folder."""
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True, timeout=LIMIT_S)


if __name__ == "__main__":
    print(fetch())
