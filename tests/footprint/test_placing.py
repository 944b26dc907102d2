"""Placements over several devices: whole on each, then spread, then split, then the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import BufferBytes, DryRun
from backends.footprint.inspect import Inspector
from backends.footprint.placing import CPU, SPARE, SPLIT, SPREAD, WHOLE, bytes_on, placements
from backends.gguf.header import GgufHeader, read_header
from budget.errors import NeverFits
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import OverheadModel
from budget.memory.split import layers_by_device
from tools.shape_layouts import Shape
from tools.shapes import write

ARGS = EngineArgs(n_ctx=1024, n_ubatch=128, rpc=("a:1", "b:2", "c:3"))
MIB = 1 << 20
LAYER_BYTES = 3 * MIB
"""Of each of the eight layers and of the output, with their KV cache."""
BESIDE_BYTES = 2 * MIB
WHOLE_BYTES = 9 * LAYER_BYTES + BESIDE_BYTES


@pytest.fixture
def header(tmp_path: Path) -> GgufHeader:
    """A sparse model of eight layers and an output."""
    return read_header(write(Shape("eight", "llama", 8, 256, 6144, 1024, 8, 8), tmp_path))


def inspector(folder: Path) -> Inspector:
    """One whose layers take 3 MiB each, and a device 2 MiB beside them."""

    def measure(_path: str, args: EngineArgs) -> DryRun:
        rows = [BufferBytes("CPU", HOST, MIB, 0, 0)]
        counts = layers_by_device(args.tensor_split, args.n_gpu_layers, 8)
        for device, count in zip(args.layer_devices, counts, strict=False):
            rows.append(BufferBytes("RPC", device, count * LAYER_BYTES, 0, BESIDE_BYTES))
        return DryRun(tuple(rows), 0, 0, 8, args.n_ctx, 0.0)

    nothing = OverheadModel(0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Inspector(FootprintCache(folder), measure, nothing, "build")


def chosen(
    header: GgufHeader, folder: Path, *limits: int, layers: int | None = None
) -> list[tuple[int, tuple[str, ...], tuple[int, ...], int]]:
    """Tier, devices, split and layers of every placement; each fits its devices."""
    bounds = {f"RPC{number}": limit for number, limit in enumerate(limits)}
    found = placements(
        inspector(folder),
        header,
        ARGS,
        bounds,
        n_gpu_layers="auto" if layers is None else layers,
        source="dry-run",
    )
    assert all(bytes_on(p, d) <= limit for p in found for d, limit in bounds.items())
    return [(p.tier, p.args.devices, p.args.tensor_split, p.args.n_gpu_layers) for p in found]


def test_whole_on_every_device_that_holds_it_comes_first(
    header: GgufHeader, tmp_path: Path
) -> None:
    """Equally good, for the core to choose by room; then both together, then the CPU."""
    found = chosen(header, tmp_path, WHOLE_BYTES, WHOLE_BYTES)
    assert found == [
        (WHOLE, ("RPC0",), (), 9),
        (WHOLE, ("RPC1",), (), 9),
        (SPREAD, ("RPC0", "RPC1"), (4, 5), 9),
        (CPU, (HOST,), (), 0),
    ]


def test_only_devices_that_are_big_enough_are_offered(header: GgufHeader, tmp_path: Path) -> None:
    """The small one gets its part of a spread."""
    found = chosen(header, tmp_path, WHOLE_BYTES - 1, WHOLE_BYTES)
    assert found[0] == (WHOLE, ("RPC1",), (), 9)
    assert [row[0] for row in found] == [WHOLE, SPREAD, CPU]


def test_a_model_too_big_for_each_is_spread_by_their_limits(
    header: GgufHeader, tmp_path: Path
) -> None:
    """A device of twice the size gets about twice the layers, and half of it all is the spare."""
    found = chosen(header, tmp_path, 11 * MIB, 21 * MIB)
    assert found[0] == (SPREAD, ("RPC0", "RPC1"), (3, 6), 9)
    assert [(row[0], row[3]) for row in found[1:]] == [(SPARE, 4), (CPU, 0)]


def test_the_fewest_devices_that_hold_it_are_used(header: GgufHeader, tmp_path: Path) -> None:
    """Two of three are enough: each pair that holds it is one way; three where two are not."""
    pairs = chosen(header, tmp_path, 17 * MIB, 17 * MIB, 17 * MIB)
    assert {row[1] for row in pairs if row[0] == SPREAD} == {
        ("RPC0", "RPC1"),
        ("RPC0", "RPC2"),
        ("RPC1", "RPC2"),
    }
    (three, *_) = chosen(header, tmp_path, 11 * MIB, 11 * MIB, 11 * MIB)
    assert three == (SPREAD, ("RPC0", "RPC1", "RPC2"), (3, 3, 3), 9)


def test_what_all_together_do_not_hold_is_split_with_the_cpu(
    header: GgufHeader, tmp_path: Path
) -> None:
    """As many layers as fit, over all devices; nothing that does not fit is offered."""
    found = chosen(header, tmp_path, 8 * MIB, 11 * MIB)
    assert found[0] == (SPLIT, ("RPC0", "RPC1"), (2, 3), 5)
    assert found[-1][0] == CPU
    assert chosen(header, tmp_path, MIB, MIB) == [(CPU, (HOST,), (), 0)]


def test_a_number_of_layers_is_honoured_on_one_device_or_several(
    header: GgufHeader, tmp_path: Path
) -> None:
    """On each device that holds them, spread where none does, and refused where all do not."""
    small = 4 * LAYER_BYTES + BESIDE_BYTES
    assert [r[1] for r in chosen(header, tmp_path, small, small, layers=4)] == [
        ("RPC0",),
        ("RPC1",),
    ]
    assert chosen(header, tmp_path, small, small, layers=7) == [
        (WHOLE, ("RPC0", "RPC1"), (3, 4), 7)
    ]
    assert chosen(header, tmp_path, small, small, layers=0) == [(CPU, (HOST,), (), 0)]
    with pytest.raises(NeverFits) as caught:
        chosen(header, tmp_path, small, small, layers=9)
    assert caught.value.facts["limit_bytes"] == small
