"""Which GPUs this program may use, and how engines get their numbers.

NVML numbers GPUs by PCI bus and knows all of them; CUDA numbers those that `CUDA_VISIBLE_DEVICES` names,
in that order. Engines are given all of NVML's GPUs by UUID, in NVML's order, so that llama.cpp's `CUDAn`
is `cuda:n` whatever the caller's environment says. Not confirmed on a machine with several GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backends.machine.devices import Device
from backends.machine.nvml import Load, has_gpu, import_nvml, list_gpus

VARIABLE: Final = "CUDA_VISIBLE_DEVICES"


def visible(gpus: Sequence[Device], setting: str | None) -> tuple[Device, ...]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves; all of them where it is not set.

    It names numbers (by PCI bus here) or UUIDs, also cut short; as CUDA does, names end at the
    first one that means nothing.
    """
    if setting is None:
        return tuple(gpus)
    found: list[Device] = []
    for word in setting.split(","):
        name = word.strip()
        matches = [
            gpu
            for gpu in gpus
            if gpu.name == f"cuda:{name}" or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        ]
        if len(matches) != 1:
            break
        found += matches
    return tuple(gpu for gpu in gpus if gpu in found)


def gpu_uuids(load_nvml: Load = import_nvml) -> list[str]:
    """The UUIDs of all GPUs, in NVML's order: that of `cuda:N` is the one at N."""
    return [gpu.uuid for gpu in list_gpus(load_nvml).found]


def gpu_environment(devices: Sequence[str], load_nvml: Load = import_nvml) -> dict[str, str]:
    """The environment variables by which an engine's `CUDAn` is our `cuda:n`; none without a GPU."""
    if not any(name.startswith("cuda:") for name in devices):
        return {}
    uuids = gpu_uuids(load_nvml)
    return {VARIABLE: ",".join(uuids)} if uuids else {}


def launch_facts(devices: Sequence[str]) -> tuple[dict[str, str], bool]:
    """The driver's facts for the start of an engine on these devices, read in one go.

    Returns:
        What its environment needs (`gpu_environment`), and whether the machine has a GPU at all.
    """
    return gpu_environment(devices), has_gpu()
