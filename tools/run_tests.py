"""`make test`: the tests in two processes side by side, because most of them wait and leave a core idle.

Tests of decisions compute, and what runs beside them cannot change them. The output of the others appears
as they run; that of the decisions follows at the end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ("budget", "config", "gguf", "planning", "policies", "simulation", "traces")
"""Folders of `tests/` whose tests compute."""


def pytest(*arguments: str) -> list[str]:
    """A run of the short tests."""
    return [sys.executable, "-m", "pytest", "-m", "not full", *arguments]


def main() -> int:
    """Run both halves to their end; returns the exit code of one that failed, or 0.

    Ctrl-C reaches both, since they are in the terminal's process group; each clears up by itself.
    """
    folders = [f"tests/{name}" for name in DECISIONS]
    others = pytest(*(f"--ignore={folder}" for folder in folders))
    with tempfile.TemporaryFile() as output:
        decisions = subprocess.Popen(
            pytest(*folders), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        running = subprocess.Popen(others, cwd=ROOT)
        try:
            codes = [running.wait(), decisions.wait()]
        except KeyboardInterrupt:
            running.wait()
            decisions.wait()
            return 130
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
