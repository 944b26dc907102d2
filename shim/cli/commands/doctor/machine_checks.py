"""What the doctor says of the machine: memory, cores, limits, GPUs, and what ends engines with a keeper."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import Final

from backends.machine.cgroups import parse_cgroup_paths, parse_figure, read_text
from backends.machine.children import ask_child, ending_with_us
from backends.machine.devices import Reader, host_device, parse_meminfo
from backends.machine.environment import child_environment
from backends.machine.nvml import Load, import_nvml, list_gpus
from shim.cli.commands.doctor.finding import Finding, Level
from shim.cli.console.output import size
from shim.config import Config

GIB: Final = 1 << 30
_LITTLE: Final = 0.1
FILES_LITTLE: Final = 1024
FILES_LEAST: Final = 128
_LIMITS: Final = (
    ("v", resource.RLIMIT_AS, "address space"),
    ("d", resource.RLIMIT_DATA, "data"),
    ("f", resource.RLIMIT_FSIZE, "size of a file"),
)
_ASK_LIMIT_S: Final = 10.0


def check_memory(config: Config, read: Reader = read_text) -> Iterator[Finding]:
    """What the host has, and what is free of it now; a control group's limit where it is lower."""
    host = host_device(read)
    facts = {"total_bytes": host.total_bytes, "free_bytes": host.free_bytes}
    text = f"{size(host.free_bytes)} free of {size(host.total_bytes)}"
    if host.description != "RAM":
        ram = parse_meminfo(read("/proc/meminfo") or "").get("MemTotal", 0)
        text += f" ({host.description}; the machine has {size(ram)})"
    little = host.free_bytes < max(GIB, _LITTLE * host.total_bytes)
    todo = "End programs that take memory, or raise the limit; models are evicted early until then."
    yield Finding("memory", "warn" if little else "ok", text, todo if little else "", facts)
    reserve = config.budget.reserve_bytes(host.total_bytes)
    if host.free_bytes < reserve:
        yield Finding(
            "memory",
            "bad",
            f"less is free than the reserve of {size(reserve)}: nothing is admitted on the host",
            "End programs that take memory, or lower [budget] reserve.",
            {"reserve_bytes": reserve},
        )


def check_cores(_: Config, read: Reader = read_text) -> Iterator[Finding]:
    """The cores that engines may use, and a control group's share of them."""
    cores = len(os.sched_getaffinity(0))
    unified = parse_cgroup_paths(read("/proc/self/cgroup") or "")[0]
    quota, _space, period = (read(f"/sys/fs/cgroup{unified or ''}/cpu.max") or "").partition(" ")
    share = parse_figure(quota)
    of = parse_figure(period)
    facts = {"cores": cores}
    if share is None or not of or share >= cores * of:
        yield Finding("cores", "ok", f"{cores} cores", facts=facts)
        return
    yield Finding(
        "cores",
        "warn",
        f"{cores} cores are seen, and the control group allows {share / of:.3g} of them",
        f"Set `threads = {max(1, share // of)}` for each model, or raise the group's limit.",
        {**facts, "allowed": share / of},
    )


def check_limits(_: Config) -> Iterator[Finding]:
    """`ulimit`: open files, and limits of memory that engines run into."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"soft": soft, "hard": hard}
    most = hard if hard != resource.RLIM_INFINITY else 1 << 30
    text = f"{most if hard != resource.RLIM_INFINITY else 'any number of'} open files"
    if most >= FILES_LITTLE:
        yield Finding("open files", "ok", text, facts=facts)
    else:
        level: Level = "bad" if most < FILES_LEAST else "warn"
        todo = "Raise `ulimit -Hn`: a keeper needs 64, and one for each client."
        yield Finding("open files", level, text, todo, facts)
    for option, number, what in _LIMITS:
        limit, _hard = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            yield Finding(
                "limits",
                "warn",
                f"`ulimit -{option}` holds the {what} to {size(limit)}",
                f"Unset it (`ulimit -{option} unlimited`), or models that are larger will not load.",
                {"limit_bytes": limit},
            )


def check_gpus(_: Config, load: Load = import_nvml) -> Iterator[Finding]:
    """The NVIDIA GPUs, and what of them is broken."""
    gpus = list_gpus(load)
    for gpu in gpus.found:
        yield Finding(
            f"cuda:{gpu.index}",
            "ok",
            f"{gpu.name}, {size(gpu.free_bytes)} free of {size(gpu.total_bytes)}",
            facts={"total_bytes": gpu.total_bytes, "free_bytes": gpu.free_bytes, "uuid": gpu.uuid},
        )
    for warning in gpus.warnings:
        yield Finding("GPUs", "bad", warning, "Look at `nvidia-smi`; models run on the CPU.")
    if not gpus.found and not gpus.warnings:
        yield Finding("GPUs", "ok", "no NVIDIA GPU; models run on the CPU")


def check_ends(_: Config) -> Iterator[Finding]:
    """Whether an engine ends with its keeper, whatever ends that: `setpriv --pdeathsig`."""
    wrapper = ending_with_us()
    if not wrapper:
        yield Finding(
            "setpriv",
            "bad",
            "setpriv is not on the PATH, so an engine could outlive its keeper",
            "Install util-linux (Debian, Ubuntu: `apt install util-linux`).",
        )
        return
    done = ask_child([*wrapper, "true"], child_environment(), _ASK_LIMIT_S)
    if done.code or done.cut:
        yield Finding(
            "setpriv",
            "bad",
            f"{wrapper[0]} does not know --pdeathsig, so an engine could outlive its keeper",
            "Install util-linux 2.33 or newer; busybox has a smaller setpriv.",
        )
    else:
        yield Finding("setpriv", "ok", "engines end with their keeper")
