"""The fault campaign of `bench/faults.py` in a short form: real engines, random moments, one seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 5
LIMIT_S = 100.0
MUST_BE_ZERO = ("untyped", "hung", "lost", "ghost_leases", "orphans", "leaks")


@pytest.mark.real
def test_faults_at_random_moments_leave_every_request_answered_or_typed() -> None:
    """No call hangs or fails without a type; no lease, process, descriptor or file stays behind."""
    command = [sys.executable, str(ROOT / "bench" / "faults.py"), "--seed", "10"]
    done = subprocess.run(
        [*command, "--faults", str(FAULTS), "--quick"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )
    assert done.stdout, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert {k: told[k] for k in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0), done.stderr[-4000:]
    assert sum(told["faults"].values()) == FAULTS
    assert told["answered"] > 0
    ended = told["answered"] + sum(told["failed"].values()) + told["given_up"] + told["with_caller"]
    assert ended == told["requests"]
    assert done.returncode == 0
