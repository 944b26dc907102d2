"""What machine this is: the key that a plan belongs to."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from backends.devices import discover, parse_meminfo, read_text
from backends.llama.binaries import build_id, find_binary
from budget.errors import ConfigError


def hardware() -> dict[str, Any]:
    """The CPU's model, cores and RAM, and the GPUs' UUIDs."""
    cpuinfo = read_text("/proc/cpuinfo") or ""
    models = [
        line.partition(":")[2].strip()
        for line in cpuinfo.splitlines()
        if line.startswith("model name")
    ]
    ram = parse_meminfo(read_text("/proc/meminfo") or "").get("MemTotal", 0)
    return {
        "cpu": models[0] if models else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": ram,
        "gpus": sorted(device.uuid for device in discover() if device.kind == "cuda"),
    }


def hardware_key(found: dict[str, Any]) -> str:
    """A short hash of what `hardware` says."""
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=8).hexdigest()


def llama_build() -> str:
    """The llama.cpp build that figures are good for; `none` where it is not installed."""
    try:
        return build_id(find_binary("llama-server"))
    except ConfigError:
        return "none"


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two machines, for people."""
    return "; ".join(
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    )
