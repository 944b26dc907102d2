"""What a warm call passes: it stays short as verbs, kinds of engines and checks are added."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "hops.py"


@pytest.mark.real
def test_a_warm_chat_passes_few_functions_in_few_files() -> None:
    """What is decided once, or is for other requests only, is no step of each call."""
    done = subprocess.run([sys.executable, BENCH], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    passed = json.loads(done.stdout.splitlines()[-1])
    assert passed["functions"] <= 45
    assert passed["files"] <= 19
