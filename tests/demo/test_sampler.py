"""The program that measures from outside: which processes it counts, and what it makes of them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from backends.machine.environment import OWNER_VARIABLE
from backends.machine.processes import pss_bytes
from backends.measure import sampler
from harness.demo.memory_samples import MemorySampler, summarize

HOLD = "import sys; block = b'x' * (32 << 20); print('ready', flush=True); sys.stdin.read()"


def holder(runtime: Path, model: str) -> subprocess.Popen[bytes]:
    """A process that looks like an engine of a runtime folder and holds 32 MiB."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "--alias", model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, OWNER_VARIABLE: str(runtime.resolve())},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_only_the_engines_of_that_folder_are_counted(tmp_path: Path) -> None:
    """The bytes of another keeper's engines are not counted."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    with holder(mine, "a") as first, holder(other, "b") as second:
        engines = sampler.Engines(mine)
        assert engines.pids() == [first.pid]
        sample = sampler.take(engines, pss_bytes, {})
        assert list(sample["engines"]) == [str(first.pid)]
        assert sample["engines"][str(first.pid)]["model"] == "a"
        assert sample["total_bytes"] > 32 << 20
        first.kill()
        first.wait()
        assert engines.pids() == []
        second.kill()


def test_the_sampler_runs_beside_and_ends_with_its_owner(tmp_path: Path) -> None:
    """What a process held is in the result although it has ended before the sampler was asked."""
    with holder(tmp_path, "a") as engine:
        with MemorySampler(tmp_path) as beside:
            process = beside._process
            assert process is not None
            wait_for_sample_of(beside, engine.pid)
            engine.kill()
            engine.wait()
            measured = beside.result()
        assert process.returncode == 0
    assert measured.samples >= 1
    assert measured.peak_bytes > 32 << 20
    assert [life.model for life in measured.lives] == ["a"]
    assert measured.peak_of("a") == measured.peak_bytes
    assert measured.peak_of("b") is None


def wait_for_sample_of(beside: MemorySampler, pid: int) -> None:
    """Block until a process was seen, for at most 30 s."""
    for _ in range(3000):
        if beside._file.exists() and f'"{pid}"' in beside._file.read_text():
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"process {pid} was never sampled")


def test_samples_add_up_to_peaks() -> None:
    """The largest sum at one moment, and each engine's own largest figure."""
    rows = [
        {"ns": 1, "total_bytes": 5, "engines": {"1": {"model": "a", "bytes": 5}}},
        {
            "ns": 2,
            "total_bytes": 9,
            "engines": {"1": {"model": "a", "bytes": 4}, "2": {"model": "b", "bytes": 5}},
        },
        {"ns": 3, "total_bytes": 7, "engines": {"3": {"model": "b", "bytes": 7}}},
    ]
    measured = summarize(json.loads(json.dumps(rows)))
    assert (measured.samples, measured.peak_bytes) == (3, 9)
    assert {life.pid: life.peak_bytes for life in measured.lives} == {1: 5, 2: 5, 3: 7}
    assert measured.peak_of("b") == 7
