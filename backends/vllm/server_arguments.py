"""A placement as the command line of vLLM's API server, in the flags that its version has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.vllm.program import VllmProgram
from budget.errors import ConfigError
from budget.footprint import HOST, Placement

_GIB: Final = 1 << 30
KV_FLAG: Final = "--kv-cache-memory-bytes"
KV_VARIABLE: Final = "VLLM_CPU_KVCACHE_SPACE"
NEEDED: Final = ("--uds", "--max-model-len", "--max-num-seqs", "--served-model-name")
OWNED: Final = frozenset(
    {
        *NEEDED,
        *("--model", "--host", "--port", "--api-key", "--root-path", "--ssl-keyfile"),
        *("--ssl-certfile", "--gpu-memory-utilization", KV_FLAG, "--num-gpu-blocks-override"),
        *("--enable-sleep-mode", "--tensor-parallel-size", "--pipeline-parallel-size"),
        *("--data-parallel-size", "--kv-cache-memory", "-tp", "-pp", "-dp", "--runner", "--task"),
        *("--swap-space", "--cpu-offload-gb", "--api-server-count"),
    }
)
"""Flags that keepwarm decides, or that would place bytes where nothing is booked."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a start beside its placement.

    `total_bytes` are those of the device that the weights go to; `sleeps`: it is to be able to sleep.
    """

    model: Path
    model_id: str
    socket: Path
    total_bytes: int
    threads: int | None = None
    sleeps: bool = False


def server_command(
    program: VllmProgram, placement: Placement, settings: ServerSettings
) -> list[str]:
    """The command line of an API server that takes what is booked for it.

    Raises:
        ConfigError: this version lacks a flag that is needed.
    """
    missing = [flag for flag in NEEDED if flag not in program.flags]
    if missing:
        raise ConfigError(
            f"vLLM {program.version} has no {', '.join(missing)}, which keepwarm needs.",
            hint="Install a newer vLLM, or run this one yourself and give its url.",
            python=program.python,
        )
    args = placement.args
    command = [*program.command, "--model", str(settings.model)]
    command += ["--served-model-name", settings.model_id, "--uds", str(settings.socket)]
    command += ["--max-model-len", str(args.context_per_slot), "--max-num-seqs", str(args.slots)]
    command += ["--gpu-memory-utilization", f"{_share(placement, settings.total_bytes):.4f}"]
    if KV_FLAG in program.flags:
        command += [KV_FLAG, str(placement.footprints[placement.main_device].kv_bytes)]
    if args.embeddings:
        command += ["--runner", "pooling"] if "--runner" in program.flags else ["--task", "embed"]
    # On the host nothing would be freed, and vLLM refuses to start with it.
    if settings.sleeps and placement.main_device != HOST:
        command += ["--enable-sleep-mode"]
    return [*command, *args.extra]


def server_variables(
    program: VllmProgram, placement: Placement, settings: ServerSettings
) -> dict[str, str]:
    """The environment variables of such a server, beside those of every engine."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.sleeps:
        found["VLLM_SERVER_DEV_MODE"] = "1"
    if settings.threads:
        found["OMP_NUM_THREADS"] = str(settings.threads)
    if placement.main_device == HOST and KV_FLAG not in program.flags:
        # Whole GiB only, so that less than one is not to be had.
        found[KV_VARIABLE] = str(max(1, placement.footprints[HOST].kv_bytes // _GIB))
    return found


def _share(placement: Placement, total_bytes: int) -> float:
    """What is booked, as the share of the device's memory that vLLM is to take."""
    booked = dict(placement.bookings).get(placement.main_device, 0)
    if total_bytes <= 0:
        return 0.9
    return min(1.0, max(0.0001, math.ceil(booked / total_bytes * 1e4) / 1e4))
