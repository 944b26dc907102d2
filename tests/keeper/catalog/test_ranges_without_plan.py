"""Contexts and slots with a minimum and a preferred value, at a start without a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import BufferBytes, DryRun
from backends.footprint.inspect import Inspector
from backends.machine.devices import Device
from budget.errors import NeverFits
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import OverheadModel
from budget.placement.sizes import shrink_note, whole_size
from shim.config import Config
from shim.keeper.catalog.entries import Prepared
from shim.keeper.catalog.preparing import prepare
from shim.placement.budgeted_devices import BudgetDevices
from tools.shape_layouts import Shape
from tools.shapes import write

NO_OVERHEAD = OverheadModel(0, 0, 0, 0, 0, 0, 0, 0, 0)
GPU = "cuda:0"
LAYERS = 4


def measured(_path: str, args: EngineArgs) -> DryRun:
    """A byte a token and 100 a slot, spread over five layers; on the host what is not on the GPU."""
    taken = args.n_ctx + 100 * args.slots
    there = taken * args.n_gpu_layers // (LAYERS + 1)
    rows = [BufferBytes("CPU", HOST, taken - there, 0, 0)]
    if there:
        rows.append(BufferBytes("CUDA0", GPU, there, 0, 0))
    return DryRun(tuple(rows), 0, 0, LAYERS, args.n_ctx, 0.0)


def prepared(folder: Path, device: str, limit_bytes: int, **keys: Any) -> Prepared:
    """One model with these keys, prepared for a device with that limit."""
    path = write(Shape("four", "llama", LAYERS, 256, 1000, 1024, 4, 4, context=1 << 16), folder)
    config = Config.from_mapping({"models": {"m": {"path": str(path), **keys}}})
    pool = Device(device, "cuda" if device == GPU else "host", 0, 0, device, "")
    devices = BudgetDevices((pool,), {HOST: 1 << 40, device: limit_bytes}, {})
    inspector = Inspector(FootprintCache(folder), measured, NO_OVERHEAD, "build")
    return prepare("m", config.models["m"], devices, inspector)


RANGE = {"context": {"min": 1000, "preferred": 8000}, "slots": {"min": 1, "preferred": 4}}


@pytest.mark.real
@pytest.mark.parametrize("device", [HOST, GPU])
@pytest.mark.parametrize(
    ("limit", "n_ctx", "slots"),
    [(8400, 8000, 4), (8399, 4000, 4), (2400, 2000, 4), (1399, 1000, 2), (1199, 1000, 1)],
)
def test_context_then_slots_are_shrunk_until_the_model_is_whole(
    device: str, limit: int, n_ctx: int, slots: int, tmp_path: Path
) -> None:
    """No further than needed, and the placement says so."""
    best = prepared(tmp_path, device, limit, **RANGE).placements[0]
    assert (best.args.n_ctx, best.args.slots) == (n_ctx, slots)
    assert best.args.n_gpu_layers == (LAYERS + 1 if device == GPU else 0)
    assert ("instead of 8000" in best.reason) == (n_ctx < 8000)


@pytest.mark.real
def test_what_is_split_even_at_its_least_keeps_its_preferred_size(tmp_path: Path) -> None:
    """Shrinking that does not spare the split would be for nothing."""
    best = prepared(tmp_path, GPU, 1000, **RANGE).placements[0]
    assert (best.args.n_ctx, best.args.slots, best.args.n_gpu_layers) == (8000, 4, 0)
    split = prepared(tmp_path, GPU, 1000, context={"min": 2000, "preferred": 4000}).placements[0]
    assert (split.args.n_ctx, split.args.n_gpu_layers) == (4000, 1)


@pytest.mark.real
def test_on_the_host_the_least_is_what_is_asked_for_in_vain(tmp_path: Path) -> None:
    """Its numbers are the nearest to fitting; the core then denies it."""
    best = prepared(tmp_path, HOST, 500, **RANGE).placements[0]
    assert (best.args.n_ctx, best.args.slots) == (1000, 1)


@pytest.mark.real
def test_layers_that_are_asked_for_exactly_are_shrunk_for_too(tmp_path: Path) -> None:
    """A range is used before an explicit number of layers is refused."""
    best = prepared(tmp_path, GPU, 800, n_gpu_layers=1, **RANGE).placements[0]
    assert (best.args.n_ctx, best.args.n_gpu_layers) == (2000, 1)
    with pytest.raises(NeverFits):
        prepared(tmp_path, GPU, 100, n_gpu_layers=1, **RANGE)


def test_a_model_without_a_range_is_not_measured_for_it() -> None:
    """And nothing is said of it."""

    def refuse(_size: tuple[int, int]) -> int:
        raise AssertionError("measured")

    assert whole_size([(512, 1)], refuse, 0, may_split=True) == (512, 1)
    assert shrink_note((512, 1), (512, 1)) == ""
