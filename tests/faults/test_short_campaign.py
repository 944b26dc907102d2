"""The fault campaign of `bench/faults.py` in a short form: real engines, random moments, one seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 10
LIMIT_S = 300.0


@pytest.mark.real
def test_faults_at_random_moments_leave_every_call_answered_or_typed() -> None:
    """No call hangs or fails without a type; no lease, process or file stays behind."""
    command = [sys.executable, str(ROOT / "bench" / "faults.py"), "--seed", "7"]
    done = subprocess.run(
        [*command, "--faults", str(FAULTS), "--quick"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    bad = {k: answer[k] for k in ("untyped", "hung", "ghost_leases", "orphans", "leaks")}
    assert bad == dict.fromkeys(bad, 0), done.stderr[-4000:]
    assert sum(answer["faults"].values()) >= FAULTS
    assert answer["answered"] > 0
    assert done.returncode == 0
