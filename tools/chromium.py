"""Get a Chromium without a window, for the tests of traces in a browser: the machine's, or Debian's.

Installs Debian's `chromium-headless-shell` (as root). A second run does nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core")
LIMIT_S = 600.0


def chromium() -> Path | None:
    """The program, where it is here."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return Path(found) if found else None


def fetch() -> Path:
    """Get the program unless it is here, and return its path.

    Raises:
        SystemExit: it cannot be had; the message says what to install.
    """
    here = chromium()
    if here is not None:
        return here
    try:
        for command in (("update",), ("install", "-y", "--no-install-recommends", *PACKAGES)):
            subprocess.run(["apt-get", *command], check=True, capture_output=True, timeout=LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(
            f"Chromium cannot be had: {error}\nInstall it (Debian: `apt install {PACKAGES[0]}`)."
        )
    found = chromium()
    return found or sys.exit(f"{PACKAGES[0]} was installed and is not on PATH.")


if __name__ == "__main__":
    print(fetch())
