"""A fake `pynvml` that behaves as NVML's documentation says, for machines without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30


def error(name: str) -> Exception:
    """An error of NVML's, by its name without `NVMLError_`."""
    kind: type[Exception] = type(f"NVMLError_{name}", (Exception,), {})
    return kind(name)


@dataclass
class FakeGpu:
    """A GPU of 24 GiB, of which 20 are free. A figure that is an error is raised when it is asked for.

    `processes` maps process numbers to their bytes, None where the driver does not say. `parts` are
    those of a GPU that is divided (MIG).
    """

    uuid: str | Exception = "GPU-abc"
    total: int = 24 * GIB
    free: int | Exception = 20 * GIB
    processes: dict[int, int | None] | Exception = field(default_factory=dict)
    parts: list[FakeGpu] = field(default_factory=list)


def gpu(**more: Any) -> FakeGpu:
    """A GPU; keyword arguments are those of `FakeGpu`."""
    return FakeGpu(**more)


class FakeNvml:
    """NVML with the GPUs it is given; `broken` is what a failing driver raises."""

    def __init__(self, gpus: list[FakeGpu], broken: Exception | None = None) -> None:
        self.gpus = gpus
        self.broken = broken

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.broken

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        if index >= len(self.gpus):
            raise error("InvalidArgument")
        return self.gpus[index]

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:  # noqa: N802
        return SimpleNamespace(total=handle.total, free=_figure(handle.free), used=0)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> bytes:  # noqa: N802
        return str(_figure(handle.uuid)).encode()

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:  # noqa: N802
        return "A GPU"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:  # noqa: N802
        listed = _figure(handle.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed.items()]

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:  # noqa: N802
        if not handle.parts:
            raise error("NotSupported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, index: int) -> FakeGpu:  # noqa: N802
        if index >= len(handle.parts):
            raise error("NotFound")
        return handle.parts[index]


def _figure(figure: Any) -> Any:
    if isinstance(figure, Exception):
        raise figure
    return figure
