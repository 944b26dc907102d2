"""What makes another machine, and what does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.machine.devices import Device, Discovery
from backends.measure import hardware as machine
from backends.measure.hardware import cpu_model, difference, hardware, hardware_key
from shim.placement.plan_file import PlacementPlan, refusal, to_text, usable_plan, write_plan
from tests.files.damage import ENTRY, FIGURES

RAM = 67_354_000_000
HERE: dict[str, Any] = {"cpu": "Zen", "cores": 16, "ram_bytes": RAM, "gpus": ["GPU-1"]}


@pytest.mark.parametrize(
    "change",
    [
        {"ram_bytes": RAM - 4096},
        {"ram_bytes": RAM - 300_000_000},
        {"ram_bytes": RAM + 2_000_000_000},
        {"cpu": "unknown"},
    ],
)
def test_a_kernel_update_does_not_make_another_machine(change: dict[str, object]) -> None:
    """It keeps a few megabytes more or less for itself; an unknown name is not another one."""
    assert difference(HERE, {**HERE, **change}) == ""
    assert difference({**HERE, **change}, HERE) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ram_bytes": 33_000_000_000}, "ram_bytes was 67354000000 and is 33000000000"),
        ({"cores": 8}, "cores was 16 and is 8"),
        ({"cpu": "Xeon"}, "cpu was 'Zen' and is 'Xeon'"),
        ({"gpus": ["GPU-1", "GPU-2"]}, "gpus was ['GPU-1'] and is ['GPU-1', 'GPU-2']"),
        ({"ram_bytes": "much"}, "ram_bytes was 67354000000 and is 'much'"),
    ],
)
def test_another_machine_is_named(change: dict[str, object], said: str) -> None:
    """Half of the memory, other cores, another processor, another GPU."""
    assert difference(HERE, {**HERE, **change}) == said


def test_a_process_on_some_of_the_cores_runs_on_the_same_machine() -> None:
    """What `taskset` or a service's CPU set leaves is not what the machine has."""
    before, allowed = hardware(), os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert hardware() == before
    finally:
        os.sched_setaffinity(0, allowed)


def test_figures_of_engines_outlive_another_amount_of_memory() -> None:
    """The key of what an engine's process takes holds no RAM, and changes with all else."""
    assert hardware_key({**HERE, "ram_bytes": 1}) == hardware_key(HERE)
    for name, value in (("cpu", "Xeon"), ("cores", 8), ("gpus", [])):
        assert hardware_key({**HERE, name: value}) != hardware_key(HERE)


def test_gpus_are_known_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by what of their memory a driver leaves, nor by their order."""

    def gpus(total: int, *uuids: str) -> Discovery:
        found = [Device(f"cuda:{n}", "cuda", total, 1, uuid, "X") for n, uuid in enumerate(uuids)]
        return Discovery(tuple(found))

    monkeypatch.setattr(machine, "cuda_devices", lambda: gpus(1000, "GPU-2", "GPU-1"))
    before = hardware()
    monkeypatch.setattr(machine, "cuda_devices", lambda: gpus(900, "GPU-1", "GPU-2"))
    assert hardware() == before
    assert before["gpus"] == ["GPU-1", "GPU-2"]


def test_a_machine_that_tells_little_is_described_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where `/proc` is hidden nothing raises."""
    monkeypatch.setattr(machine, "read_text", lambda _path: None)
    assert (hardware()["cpu"], hardware()["ram_bytes"]) == ("unknown", 0)


def test_processors_without_a_name_are_known_by_their_numbers() -> None:
    """ARM has no `model name`."""
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    assert cpu_model(arm).endswith("0x41 0xd0c")
    assert cpu_model("processor: 0\nmodel name\t: Zen 5\nmodel name\t: other\n") == "Zen 5"
    assert cpu_model("") == "unknown"


def test_a_plan_written_before_ram_was_compared_loosely_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the RAM to the byte, which a later kernel does not say again."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    here = hardware()
    then = {**here, "ram_bytes": here["ram_bytes"] - 12_345_678}
    plan = PlacementPlan(then, machine.llama_build(), "quick", FIGURES, {"m-1": ENTRY.to_json()})
    assert refusal(plan) is None
    write_plan(plan)
    assert usable_plan()[1] == ""
    other = replace(plan, hardware={**then, "gpus": ["GPU-0"]})
    assert "gpus was" in (refusal(other) or "")
    assert '"ram_bytes"' in to_text(plan)
