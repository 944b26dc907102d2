"""The dry measurement against real llama.cpp: its log byte for byte, and its failures contained."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint import dry_run
from backends.footprint.dry_run import DryRun, measure
from budget.errors import BadModelFile, ConfigError, MeasurementFailed
from budget.footprint import HOST, EngineArgs
from tests.footprint.support import logged_until_ready

pytestmark = pytest.mark.real

ARGS = EngineArgs(n_ctx=1024, n_ubatch=128, devices=(HOST,))
LINE = re.compile(r"(\S+)\s+(model|KV|compute|output) buffer size =\s+([\d.]+) MiB")
PARTS = {"model": "weights_bytes", "KV": "kv_bytes", "compute": "compute_bytes"}


def logged_buffers(model: Path, args: EngineArgs, folder: Path) -> dict[tuple[str, str], float]:
    """MiB by (buffer type, part) that a real llama-server logs before it is ready."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for line in logged_until_ready(model, args, folder):
        if match := LINE.search(line):
            found[match[1], match[2]] += float(match[3])
    return found


def measured_buffers(run: DryRun) -> dict[tuple[str, str], float]:
    """The same of a dry run, rounded as the log is."""
    found = {
        (row.buffer_type, part): round(getattr(row, name) / (1 << 20), 2)
        for row in run.buffers
        for part, name in PARTS.items()
        if getattr(row, name)
    }
    return found | {("CPU", "output"): round(run.output_bytes / (1 << 20), 2)}


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("embedder", {"embeddings": True}),
        ("evaluator", {}),
        ("classifier", {"slots": 4, "kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ("producer", {"slots": 2, "kv_unified": True}),
        ("producer", {"repack": False, "flash_attention": "off"}),
    ],
    ids=["F16", "Q8_0", "Q4_K_M-q8_0-slots", "Q4_0-unified", "Q4_0-no-repack-no-flash"],
)
def test_the_dry_run_equals_what_a_real_llama_server_logs(
    tiny_models: dict[str, Path], runtime_dir: Path, role: str, changes: dict[str, object]
) -> None:
    """Every buffer of every type, to the log's two decimals, for each quantization."""
    args = replace(ARGS, **changes)  # type: ignore[arg-type]
    model = tiny_models[role]
    logged = {k: v for k, v in logged_buffers(model, args, runtime_dir).items() if v}
    measured = {k: v for k, v in measured_buffers(measure(model, args)).items() if v}
    assert measured.keys() == logged.keys()
    for key, value in logged.items():
        assert measured[key] == pytest.approx(value, abs=0.011), key


def test_a_truncated_file_is_a_bad_model_file_with_the_log(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The caller gets llama.cpp's own words."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_models["classifier"].read_bytes()[:50_000])
    with pytest.raises(BadModelFile) as caught:
        measure(cut, ARGS)
    assert caught.value.facts["file"] == str(cut)
    assert caught.value.facts["log_tail"]


def test_a_crash_of_llama_cpp_is_contained(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort in the probe is an error with its last lines; this process runs on."""
    crash = tmp_path / "crash.py"
    crash.write_text(
        "import os, sys\nsys.stderr.write('GGML_ASSERT(false) failed: error\\n')\n"
        "sys.stderr.flush()\nos.abort()\n"
    )
    monkeypatch.setattr(dry_run, "_PROBE", (str(crash),))
    with pytest.raises(MeasurementFailed, match="signal 6") as caught:
        measure(tiny_models["classifier"], ARGS)
    assert "GGML_ASSERT(false) failed: error" in str(caught.value.facts["log_tail"])


def test_a_measurement_that_hangs_is_ended(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time-out ends the probe and says so."""
    hang = tmp_path / "hang.py"
    hang.write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.setattr(dry_run, "_PROBE", (str(hang),))
    with pytest.raises(MeasurementFailed, match=r"more than 0\.2 s"):
        measure(tiny_models["classifier"], ARGS, timeout_s=0.2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": ("cuda:7",)}, "no device CUDA7"),
        ({"kv_type_k": "q3_k"}, "kv_type_k"),
        ({"kv_type_v": "q8_0", "flash_attention": "off"}, "flash"),
        ({"n_ctx": 0}, "n_ctx"),
        ({"slots": 0}, "slots"),
    ],
)
def test_impossible_arguments_are_refused(
    tiny_models: dict[str, Path], changes: dict[str, object], words: str
) -> None:
    """Each names the argument; llama.cpp would abort or guess."""
    with pytest.raises(ConfigError, match=words):
        measure(tiny_models["classifier"], replace(ARGS, **changes))  # type: ignore[arg-type]
