"""Identifies this machine, because a placement plan is valid for one machine.

Only hardware that changes figures counts. Two differences make no other machine: a kernel keeps a few
megabytes more or less for itself after an update, and a process may run on a part of the cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import textwrap
from collections.abc import Mapping
from typing import Any, Final

from backends.llama.binaries import build_id, find_binary
from backends.machine.cgroups import read_text
from backends.machine.devices import cuda_devices, parse_meminfo
from budget.errors import ConfigError

UNKNOWN: Final = "unknown"
ALIKE: Final = 1 / 16
"""Amounts of RAM that differ by a smaller share count as equal. It is less than a module, and more than a
kernel's own share."""


def hardware() -> dict[str, Any]:
    """The CPU's model, the machine's cores and RAM, and the GPUs' UUIDs."""
    return {
        "cpu": cpu_model(read_text("/proc/cpuinfo") or ""),
        "cores": os.cpu_count() or 0,
        "ram_bytes": parse_meminfo(read_text("/proc/meminfo") or "").get("MemTotal", 0),
        "gpus": sorted(device.uuid for device in cuda_devices().devices),
    }


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in `/proc/cpuinfo`; on ARM, which has no name there, the vendor's numbers."""
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if found.get("model name"):
        return found["model name"]
    numbers = [found[name] for name in ("CPU implementer", "CPU part") if found.get(name)]
    return " ".join([platform.machine(), *numbers]) if numbers else UNKNOWN


def hardware_key(found: Mapping[str, Any]) -> str:
    """A short hash of `hardware`, without the RAM, because no figure kept under it depends on the RAM."""
    counted = {name: value for name, value in found.items() if name != "ram_bytes"}
    return hashlib.blake2b(json.dumps(counted, sort_keys=True).encode(), digest_size=8).hexdigest()


def llama_build() -> str:
    """The llama.cpp build that figures are valid for; `none` where it is not installed."""
    try:
        return build_id(find_binary("llama-server"))
    except ConfigError:
        return "none"


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two machines, as text; empty when figures of one are valid for the other."""
    return "; ".join(
        f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}"
        for name in sorted({*then, *now})
        if not _is_alike(name, then.get(name), now.get(name))
    )


def _short(value: object) -> str:
    return textwrap.shorten(repr(value), 200)


def _is_alike(name: str, then: object, now: object) -> bool:
    if name == "cpu" and (then == UNKNOWN or now == UNKNOWN):
        return True
    if name == "ram_bytes" and isinstance(then, int) and isinstance(now, int):
        return abs(then - now) <= ALIKE * max(then, now)
    return then == now
