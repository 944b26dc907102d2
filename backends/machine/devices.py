"""The devices of this machine: pools of bytes with a total and a measured free figure.

The host's total is the smaller of its control group's limit and its RAM; GPUs are distinguished by
UUID. Reading is apart from parsing: what is read can be given, pure functions parse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from backends.machine.cgroups import parse_cgroup_paths, parse_figure, read_text
from backends.machine.nvml import Load, gpu_free_bytes, import_nvml, list_gpus
from budget.errors import ConfigError, OutsideError
from budget.footprint import HOST

Kind = Literal["host", "cuda", "rpc"]
Reader = Callable[[str], str | None]

_ARC_STATS: Final = "/proc/spl/kstat/zfs/arcstats"
_CGROUP_ROOT: Final = "/sys/fs/cgroup"
_CUDA_NAME: Final = re.compile(r"cuda:(\d+)")
_LLAMA_CUDA_NAME: Final = re.compile(r"CUDA(\d+)")
_RPC_NAME: Final = re.compile(r"RPC\d+")


@dataclass(frozen=True, slots=True)
class Device:
    """A pool of bytes. `free_bytes` is that of the moment it was discovered.

    `server` is the address of the RPC server that a device is behind.
    """

    name: str
    kind: Kind
    total_bytes: int
    free_bytes: int
    uuid: str
    description: str
    server: str = ""


@dataclass(frozen=True, slots=True)
class Discovery:
    """The devices that exist; `warnings` names the broken ones."""

    devices: tuple[Device, ...]
    warnings: tuple[str, ...] = ()


def device_name(llama_name: str) -> str:
    """Our name of a device that llama.cpp names: `CUDA0` is `cuda:0`; others keep their name."""
    match = _LLAMA_CUDA_NAME.fullmatch(llama_name)
    return f"cuda:{match[1]}" if match else llama_name


def is_rpc(name: str) -> bool:
    """Whether a name is that of a device behind an RPC server. Its bytes are not measured here."""
    return _RPC_NAME.fullmatch(name) is not None


def llama_device_names(devices: Sequence[str]) -> list[str]:
    """llama.cpp's names (`--device`) of devices of ours: `cuda:0` is `CUDA0`.

    The host is always there and is left out; the host alone is `none`. No devices at all stay none
    given: llama.cpp then uses all that it has.
    """
    matches = [(name, _CUDA_NAME.fullmatch(name)) for name in devices if name != HOST]
    named = [f"CUDA{match[1]}" if match else name for name, match in matches]
    return named or (["none"] if devices else [])


def parse_meminfo(text: str) -> dict[str, int]:
    """The bytes of each line of `/proc/meminfo`, by its name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) == 2 and fields[1] == "kB" and fields[0].isdecimal():
            found[name] = int(fields[0]) * 1024
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Limit and use of one control group. Its page cache that can be dropped counts as free."""

    limit_bytes: int
    used_bytes: int


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _reclaimable_bytes(stat: str | None) -> int:
    """Page cache that the kernel can drop, by `memory.stat` (v1 sums its children in `total_`).

    Mapped pages are among it, as they are in the machine's own `MemAvailable`.
    """
    fields = dict(line.split() for line in (stat or "").splitlines() if len(line.split()) == 2)
    prefix = "total_" if "total_inactive_file" in fields else ""
    return sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def _groups(read: Reader) -> list[_Group]:
    """Every control group around this process that has a memory limit, innermost first."""
    unified, memory = parse_cgroup_paths(read("/proc/self/cgroup") or "")
    places = []
    if unified is not None:
        places.append((_CGROUP_ROOT, unified, "memory.max", "memory.current"))
    if memory is not None:
        root = f"{_CGROUP_ROOT}/memory"
        places.append((root, memory, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = []
    for root, path, limit_file, usage_file in places:
        # In a container the group's own path may not be mounted: its root is the limit then.
        for ancestor in _ancestors(path):
            folder = f"{root}/{ancestor}".rstrip("/")
            limit = parse_figure(read(f"{folder}/{limit_file}"))
            if limit is None:
                continue
            used = parse_figure(read(f"{folder}/{usage_file}")) or 0
            cache = _reclaimable_bytes(read(f"{folder}/memory.stat"))
            found.append(_Group(limit, max(used - cache, 0)))
    return found


def _shrinkable_arc_bytes(read: Reader) -> int:
    """What ZFS's cache (the ARC) gives back when programs need memory: all beyond its minimum.

    `MemAvailable` counts it as used, because it is no page cache of the kernel's.
    """
    fields: dict[str, int] = {}
    for line in (read(_ARC_STATS) or "").splitlines():
        name, _, rest = line.partition(" ")
        figures = rest.split()
        if len(figures) == 2 and figures[1].isdecimal():
            fields[name] = int(figures[1])
    if "size" not in fields or "c_min" not in fields:
        return 0
    return max(fields["size"] - fields["c_min"], 0)


def host_device(read: Reader = read_text) -> Device:
    """The machine's memory as this process may use it.

    Raises:
        OutsideError: `/proc/meminfo` says nothing.
    """
    meminfo = parse_meminfo(read("/proc/meminfo") or "")
    if "MemTotal" not in meminfo:
        raise OutsideError(
            "the machine's memory is not known: /proc/meminfo has no MemTotal.",
            hint="keepwarm runs on Linux.",
        )
    ram = meminfo["MemTotal"]
    total, free, source = ram, meminfo.get("MemAvailable", meminfo.get("MemFree", 0)), "RAM"
    free += _shrinkable_arc_bytes(read)
    for group in _groups(read):
        if group.limit_bytes < total:
            total, source = group.limit_bytes, "control group limit"
        free = min(free, max(group.limit_bytes - group.used_bytes, 0))
    machine_id = (read("/etc/machine-id") or "").strip()
    return Device(HOST, "host", total, min(free, total), f"host-{machine_id}", source)


def cuda_devices(load: Load = import_nvml) -> Discovery:
    """The NVIDIA GPUs, `cuda:N` by NVML's index; none without a driver, a warning for a broken one."""
    gpus = list_gpus(load)
    devices = (
        Device(f"cuda:{g.index}", "cuda", g.total_bytes, g.free_bytes, g.uuid, g.name)
        for g in gpus.found
    )
    return Discovery(tuple(devices), gpus.warnings)


def survey(read: Reader = read_text, load_nvml: Load = import_nvml) -> Discovery:
    """The host and every GPU, the host first; what is broken is in `warnings`.

    Raises:
        OutsideError: the machine's memory is not known.
    """
    gpus = cuda_devices(load_nvml)
    return Discovery((host_device(read), *gpus.devices), gpus.warnings)


def discover() -> list[Device]:
    """The devices of this machine, the host first; `survey` also names broken ones.

    Raises:
        OutsideError: the machine's memory is not known.
    """
    return list(survey().devices)


def find_device(name: str, discovery: Discovery | None = None) -> Device:
    """The device of that name, or by UUID; `auto` is the first GPU, or else the host.

    Raises:
        ConfigError: there is no such device, with those that are there.
    """
    found = discovery or survey()
    if name == "auto":
        return next((d for d in found.devices if d.kind == "cuda"), found.devices[0])
    for device in found.devices:
        if name in {device.name, device.uuid}:
            return device
    names = [device.name for device in found.devices]
    raise ConfigError(
        f"there is no device {name!r}; here are {', '.join(names)}.",
        hint=" ".join(found.warnings) or "Use auto, host, cuda:N or a GPU's UUID.",
        device=name,
        devices=list(names),
    )


def free_bytes(
    device: str, *, read: Reader = read_text, load_nvml: Load = import_nvml
) -> int | None:
    """Measured free bytes of a device, now; None where they cannot be had."""
    if device == HOST:
        try:
            return host_device(read).free_bytes
        except OutsideError:
            return None
    match = _CUDA_NAME.fullmatch(device)
    return gpu_free_bytes(int(match[1]), load_nvml) if match else None
