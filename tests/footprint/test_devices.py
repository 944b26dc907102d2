"""Devices: parsing of what the machine and NVML say; nothing here reads the machine itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backends.machine.cgroups import parse_cgroup_paths, parse_figure
from backends.machine.devices import (
    Device,
    cuda_devices,
    device_name,
    find_device,
    host_device,
    llama_device_names,
    parse_meminfo,
    survey,
)
from backends.machine.gpus import gpu_environment, visible
from budget.errors import ConfigError, OutsideError
from tests.fake_nvml import FakeNvml, error, gpu

GIB = 1 << 30
MEMINFO = f"MemTotal:       {16 * GIB // 1024} kB\nMemFree: 100 kB\nMemAvailable:   {9 * GIB // 1024} kB\n"


def machine(files: dict[str, str]) -> Callable[[str], str | None]:
    """A machine of these files, with 16 GiB of RAM."""
    return {"/proc/meminfo": MEMINFO, **files}.get


def test_meminfo_lines_are_bytes_and_odd_lines_are_left_out() -> None:
    """`kB` lines become bytes; lines without a unit do not."""
    assert parse_meminfo("MemTotal: 2 kB\nHugePages_Total: 7\nnonsense\n") == {"MemTotal": 2048}


def test_both_kinds_of_control_groups_are_found() -> None:
    """A hybrid machine names a v2 group and a v1 memory group."""
    text = "12:cpu,memory:/v1/x\n0::/user.slice/a\n"
    assert parse_cgroup_paths(text) == ("/user.slice/a", "/v1/x")


@pytest.mark.parametrize(
    ("text", "value"), [("max\n", None), ("4096\n", 4096), (None, None), (str(1 << 62), None)]
)
def test_an_unlimited_control_group_has_no_figure(text: str | None, value: int | None) -> None:
    """v2 says `max`, v1 a number beyond any memory."""
    assert parse_figure(text) == value


def test_without_a_control_group_the_host_is_the_machine() -> None:
    """Total is MemTotal, free is MemAvailable."""
    host = host_device(machine({}))
    assert (host.total_bytes, host.free_bytes, host.name) == (16 * GIB, 9 * GIB, "host")


ARC = """13 1 0x01 123 33456 7211233 83457893
name                            type data
hits                            4    1234567
c                               4    8589934592
c_min                           4    1073741824
c_max                           4    8589934592
size                            4    {size}
"""


@pytest.mark.parametrize(
    ("arc", "free"),
    [
        (ARC.format(size=5 * GIB), 13 * GIB),
        (ARC.format(size=GIB // 2), 9 * GIB),
        (ARC.format(size=15 * GIB), 16 * GIB),
        (ARC.format(size="unknown"), 9 * GIB),
        ("", 9 * GIB),
    ],
)
def test_zfs_cache_counts_as_free_down_to_its_minimum(arc: str, free: int) -> None:
    """The ARC gives way to programs, and `MemAvailable` does not know that."""
    assert host_device(machine({"/proc/spl/kstat/zfs/arcstats": arc})).free_bytes == free


def test_a_control_groups_limit_counts_before_the_machines_memory() -> None:
    """The innermost limit is the total; what it uses, less its droppable page cache, is not free."""
    folder = "/sys/fs/cgroup/a/b"
    files = {
        "/proc/self/cgroup": "0::/a/b\n",
        f"{folder}/memory.max": str(4 * GIB),
        f"{folder}/memory.current": str(3 * GIB),
        f"{folder}/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n",
    }
    host = host_device(machine(files))
    assert (host.total_bytes, host.free_bytes) == (4 * GIB, 2 * GIB)
    assert host.description == "control group limit"


def test_the_tightest_of_nested_limits_counts() -> None:
    """A parent group may allow less than its child asks for."""
    files = {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/b/memory.max": str(8 * GIB),
        "/sys/fs/cgroup/a/memory.max": str(2 * GIB),
    }
    assert host_device(machine(files)).total_bytes == 2 * GIB


def test_a_container_sees_its_limit_at_the_mounts_root() -> None:
    """Inside a container the group's own path is not mounted; its limit lies at the root."""
    files = {
        "/proc/self/cgroup": "9:memory:/docker/123\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB // 4),
    }
    host = host_device(machine(files))
    assert (host.total_bytes, host.free_bytes) == (GIB, GIB - GIB // 4)


def test_a_machine_that_says_nothing_is_an_error() -> None:
    """Without MemTotal there is no budget to speak of."""
    with pytest.raises(OutsideError, match="MemTotal"):
        host_device(machine({"/proc/meminfo": ""}))


def test_gpus_are_named_by_index_and_known_by_uuid() -> None:
    """NVML's bytes become text, its figures ints."""
    found = survey(machine({}), lambda: FakeNvml([gpu(), gpu(uuid="GPU-def")]))
    assert [d.name for d in found.devices] == ["host", "cuda:0", "cuda:1"]
    assert find_device("GPU-def", found).name == "cuda:1"
    assert found.devices[1].total_bytes == 24 * GIB


def test_auto_is_the_first_gpu_and_else_the_host() -> None:
    """`auto` never fails."""
    with_gpu = survey(machine({}), lambda: FakeNvml([gpu()]))
    without = survey(machine({}), lambda: FakeNvml([]))
    assert find_device("auto", with_gpu).name == "cuda:0"
    assert find_device("auto", without).name == "host"


def test_an_absent_driver_is_silent() -> None:
    """A machine without NVIDIA is an ordinary machine."""
    assert cuda_devices(lambda: FakeNvml([], error("LibraryNotFound"))).warnings == ()


def test_a_broken_driver_is_said() -> None:
    """A driver that is there and fails must not look like no driver."""
    found = cuda_devices(lambda: FakeNvml([], error("LibRmVersionMismatch")))
    assert found.devices == ()
    assert "LibRmVersionMismatch" in found.warnings[0]


def test_an_unknown_device_is_refused_with_those_that_are_there() -> None:
    """The mistake is named with what is allowed."""
    with pytest.raises(ConfigError, match=r"cuda:3.*host") as caught:
        find_device("cuda:3", survey(machine({}), lambda: FakeNvml([])))
    assert caught.value.facts["devices"] == ["host"]


def test_device_names_translate_to_llama_cpp_and_back() -> None:
    """The host alone is `none`; with others it goes without saying; nothing named stays nothing."""
    assert llama_device_names(["host"]) == ["none"]
    assert llama_device_names(["host", "cuda:1"]) == ["CUDA1"]
    assert llama_device_names(["RPC0"]) == ["RPC0"]
    assert llama_device_names([]) == []
    assert (device_name("CUDA1"), device_name("RPC0")) == ("cuda:1", "RPC0")


def test_engines_number_gpus_as_nvml_does() -> None:
    """All GPUs by UUID, in NVML's order, whatever the caller's environment hides; none for a host."""
    nvml = FakeNvml([gpu(uuid="GPU-abc"), gpu(uuid="GPU-def")])
    two = {"CUDA_VISIBLE_DEVICES": "GPU-abc,GPU-def"}
    assert gpu_environment(("cuda:1",), lambda: nvml) == two
    assert gpu_environment(("host", "RPC0"), lambda: nvml) == {}
    assert gpu_environment(("cuda:0",), lambda: FakeNvml([])) == {}


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, ["cuda:0", "cuda:1"]),
        ("1,0", ["cuda:0", "cuda:1"]),
        ("1", ["cuda:1"]),
        ("GPU-d", ["cuda:1"]),
        ("GPU-", []),
        ("0,7,1", ["cuda:0"]),
        ("", []),
        ("-1", []),
    ],
)
def test_hidden_gpus_are_left_out(setting: str | None, left: list[str]) -> None:
    """By number or UUID; as in CUDA, the list ends at the first name that means nothing."""
    gpus = [
        Device(f"cuda:{n}", "cuda", GIB, GIB, uuid, "")
        for n, uuid in enumerate(("GPU-abc", "GPU-def"))
    ]
    assert [device.name for device in visible(gpus, setting)] == left
