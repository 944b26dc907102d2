"""All questions to NVML. An unknown figure is None, never 0.

Some figures are unknown on some machines. There may be no driver, or a figure may not be supported. A
divided GPU (MIG) shows its parts' figures to administrators only. In a container the listed processes
may have the numbers of another namespace. MIG is not confirmed on a machine that has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol

_NOT_AVAILABLE: Final = (1 << 64) - 1
"""NVML_VALUE_NOT_AVAILABLE: a figure that the driver does not know."""
_MIG_ENABLED: Final = 1


class Nvml(Protocol):
    """The part of `pynvml` (nvidia-ml-py) that is used; a fake has the same functions."""

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own names
        """Load the driver's library."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """The number of GPUs."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """A GPU by its index."""

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        """`total`, `free` and `used` bytes."""

    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes:  # noqa: N802
        """The GPU's UUID."""

    def nvmlDeviceGetName(self, handle: Any) -> str | bytes:  # noqa: N802
        """The GPU's product name."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        """Processes with a context on the GPU: `pid`, `usedGpuMemory` (None: unknown)."""

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        """Whether the GPU is divided: now, and after the next reset."""

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:  # noqa: N802
        """How many parts a divided GPU has at most."""

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:  # noqa: N802
        """A part of a divided GPU."""


Load = Callable[[], Nvml]


def import_nvml() -> Nvml:
    """NVML's binding; it is loaded where a GPU is looked for."""
    import pynvml  # noqa: PLC0415 - a machine without NVIDIA's driver never needs it

    library: Nvml = pynvml
    return library


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that can be used, by NVML's index. Where it is divided, its first part stands for it."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs that are there, in NVML's order; `warnings` names unused ones, with the reasons."""

    found: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()


def list_gpus(load: Load = import_nvml) -> Gpus:
    """The GPUs, none without a driver.

    The list ends at the first one that cannot be read, as CUDA's does, because later GPUs would have other
    numbers in an engine than here.
    """
    try:
        nvml = load()
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception as error:
        if _is_absent(error):
            return Gpus()
        return Gpus((), (f"NVIDIA's driver is there but fails: {error}. No GPU is used.",))
    found: list[Gpu] = []
    warnings: list[str] = []
    for index in range(count):
        try:
            gpu, warning = _read(nvml, index)
        except Exception as error:
            later = " and those after it" if index + 1 < count else ""
            warnings.append(f"GPU {index} cannot be read: {error}. It{later} are not used.")
            break
        found.append(gpu)
        warnings += warning
    return Gpus(tuple(found), tuple(warnings))


@functools.cache
def has_gpu() -> bool:
    """Whether the machine has a GPU that NVML knows of; asked once."""
    return bool(list_gpus().found)


def _read(nvml: Nvml, index: int) -> tuple[Gpu, list[str]]:
    handle, parts = _handle(nvml, index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    gpu = Gpu(
        index,
        _text(nvml.nvmlDeviceGetUUID(handle)),
        _text(nvml.nvmlDeviceGetName(handle)),
        int(memory.total),
        int(memory.free),
    )
    if parts < 2:
        return gpu, []
    return gpu, [f"GPU {index} is divided into {parts} MIG parts; the first one is used."]


def gpu_free_bytes(index: int, load: Load = import_nvml) -> int | None:
    """Bytes that a GPU has free now; None where they are unknown."""
    try:
        nvml = load()
        nvml.nvmlInit()
        handle, _ = _handle(nvml, index)
        return _figure(nvml.nvmlDeviceGetMemoryInfo(handle).free)
    except Exception:
        return None


def gpu_process_bytes(index: int, pids: Collection[int], load: Load = import_nvml) -> int | None:
    """Bytes that processes take on a GPU together; None where they are unknown.

    None also if none of them is listed, because in a container the list has other numbers, and a process
    is listed only once it has a context.
    """
    try:
        nvml = load()
        nvml.nvmlInit()
        handle, _ = _handle(nvml, index)
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        amounts = [_figure(row.usedGpuMemory) for row in listed if row.pid in pids]
    except Exception:
        return None
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None


def _handle(nvml: Nvml, index: int) -> tuple[Any, int]:
    """The handle to query for a GPU (that of its first part if divided), and its number of parts.

    A program sees only one part of a divided GPU, and the figures of the whole GPU do not apply to it.
    """
    whole = nvml.nvmlDeviceGetHandleByIndex(index)
    parts = _parts(nvml, whole)
    return (parts[0], len(parts)) if parts else (whole, 0)


def _parts(nvml: Nvml, whole: Any) -> list[Any]:
    try:
        if nvml.nvmlDeviceGetMigMode(whole)[0] != _MIG_ENABLED:
            return []
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(whole)
    except Exception:
        return []  # a GPU that cannot be divided, or a driver that does not know of it
    places = [_part(nvml, whole, place) for place in range(most)]
    return [part for part in places if part is not None]


def _part(nvml: Nvml, whole: Any, place: int) -> Any:
    try:
        return nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, place)
    except Exception:
        return None  # an empty place


def _figure(value: Any) -> int | None:
    return None if value is None or int(value) == _NOT_AVAILABLE else int(value)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _is_absent(error: Exception) -> bool:
    """Whether NVML says that there is no driver, as against one that fails."""
    name = type(error).__name__
    return isinstance(error, ImportError) or name in {
        "NVMLError_LibraryNotFound",
        "NVMLError_DriverNotLoaded",
    }
