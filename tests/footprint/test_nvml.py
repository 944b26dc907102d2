"""An unknown figure of NVML is None, for each way in which it can be unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backends.machine.devices import free_bytes
from backends.machine.nvml import gpu_free_bytes, gpu_process_bytes, list_gpus
from tests.fake_nvml import GIB, FakeGpu, FakeNvml, error, gpu


def of(*gpus: FakeGpu) -> Callable[[], FakeNvml]:
    """A loader of a driver with these GPUs."""
    return lambda: FakeNvml(list(gpus))


def test_the_bytes_of_our_processes_are_added_up() -> None:
    """Those of others on the same GPU are not ours."""
    load = of(gpu(processes={7: 5 * GIB, 8: GIB, 9: 3 * GIB}))
    assert gpu_process_bytes(0, {7, 8}, load) == 6 * GIB


@pytest.mark.parametrize(
    ("why", "processes"),
    [
        ("not available, as the binding says it", {7: None}),
        ("not available, as the driver says it", {7: (1 << 64) - 1}),
        ("one of two is not available", {7: GIB, 8: None}),
        ("a container: the numbers are another namespace's", {4711: 5 * GIB}),
        ("an empty list", {}),
        ("not supported", error("NotSupported")),
        ("no permission", error("NoPermission")),
        ("the GPU has fallen off the bus", error("GpuIsLost")),
    ],
)
def test_processes_that_nvml_does_not_tell_are_unknown(
    why: str, processes: dict[int, int | None] | Exception
) -> None:
    """Nothing of it is 0 bytes: an engine that is there takes some."""
    assert gpu_process_bytes(0, {7, 8}, of(gpu(processes=processes))) is None, why


def test_without_a_driver_everything_is_unknown() -> None:
    """No library, or one that fails: no figure, no exception."""

    def missing() -> FakeNvml:
        raise ImportError("No module named 'pynvml'")

    for load in (missing, lambda: FakeNvml([gpu()], error("LibraryNotFound")), of()):
        assert gpu_process_bytes(0, {7}, load) is None
        assert gpu_free_bytes(0, load) is None


def test_the_free_figure_of_a_gpu_may_be_missing() -> None:
    """It is asked of that GPU alone: another one that fails is no obstacle."""
    load = of(gpu(free=error("Unknown")), gpu(free=3 * GIB))
    assert gpu_free_bytes(0, load) is None
    assert free_bytes("cuda:1", load_nvml=load) == 3 * GIB
    assert free_bytes("cuda:0", load_nvml=load) is None
    assert free_bytes("cuda:7", load_nvml=load) is None
    assert free_bytes("RPC0", load_nvml=load) is None


def test_a_host_that_says_nothing_is_unknown() -> None:
    """Reading it again with the next period is better than an exception in a measurement."""
    assert free_bytes("host", read=lambda _path: None) is None


def test_the_list_ends_at_a_gpu_that_cannot_be_read() -> None:
    """Those before it are used; those after would have other numbers in an engine; it is said."""
    found = list_gpus(of(gpu(uuid="GPU-a"), gpu(uuid=error("GpuIsLost")), gpu(uuid="GPU-c")))
    assert [g.uuid for g in found.found] == ["GPU-a"]
    assert len(found.warnings) == 1
    assert "GPU 1" in found.warnings[0]
    assert "after it" in found.warnings[0]


def test_of_a_divided_gpu_the_first_part_is_used() -> None:
    """The whole GPU's figures are shown to administrators only, and are not those of a program's part."""
    parts = [
        gpu(uuid="MIG-1", total=10 * GIB, free=9 * GIB, processes={7: GIB}),
        gpu(uuid="MIG-2", total=10 * GIB),
    ]
    load = of(gpu(free=error("NoPermission"), processes=error("NoPermission"), parts=parts))
    found = list_gpus(load)
    assert [(g.uuid, g.total_bytes, g.free_bytes) for g in found.found] == [
        ("MIG-1", 10 * GIB, 9 * GIB)
    ]
    assert "2 MIG parts" in found.warnings[0]
    assert gpu_free_bytes(0, load) == 9 * GIB
    assert gpu_process_bytes(0, {7}, load) == GIB


def test_a_divided_gpu_whose_processes_are_not_listed() -> None:
    """The usual case for a program that is not an administrator's."""
    part = gpu(uuid="MIG-1", processes={7: (1 << 64) - 1})
    assert gpu_process_bytes(0, {7}, of(gpu(parts=[part]))) is None
