"""llama.cpp's and ggml's native side as the probe needs it: errors, C++ maps, devices.

Standard library only: it is imported by the probe's own process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXIT_UNSUPPORTED = 3
EXIT_LOAD = 4
EXIT_CONTEXT = 5
EXIT_DEVICE = 6
EXIT_MISMATCH = 7

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
DEVICE_TYPE_CPU = 0


class ProbeError(Exception):
    """The measurement cannot be made; `code` is the exit status of the process."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class MapNode(ctypes.Structure):
    """A node of libstdc++'s `std::map`: `_Rb_tree_node_base`, then the pair.

    The pair is the buffer type and `llama_memory_breakdown_data`.
    """


NodePointer = ctypes.POINTER(MapNode)
MapNode._fields_ = [
    ("color", ctypes.c_int),
    ("parent", NodePointer),
    ("left", NodePointer),
    ("right", NodePointer),
    ("buffer_type", ctypes.c_void_p),
    ("model", ctypes.c_size_t),
    ("context", ctypes.c_size_t),
    ("compute", ctypes.c_size_t),
]


class DeviceNode(ctypes.Structure):
    """A node of `std::map<ggml_backend_dev_t, size_t>`."""


DevicePointer = ctypes.POINTER(DeviceNode)
DeviceNode._fields_ = [
    ("color", ctypes.c_int),
    ("parent", DevicePointer),
    ("left", DevicePointer),
    ("right", DevicePointer),
    ("device", ctypes.c_void_p),
    ("n_bytes", ctypes.c_size_t),
]


class Map(ctypes.Structure):
    """libstdc++'s `std::map`: the (empty) comparator, the header node, the count."""

    _fields_ = (
        ("compare", ctypes.c_void_p),
        ("color", ctypes.c_int),
        ("root", NodePointer),
        ("leftmost", NodePointer),
        ("rightmost", NodePointer),
        ("count", ctypes.c_size_t),
    )


def in_order(node: Any) -> Iterator[Any]:
    """The nodes of a map, by key."""
    if node:
        yield from in_order(node.contents.left)
        yield node.contents
        yield from in_order(node.contents.right)


class Ggml:
    """The few functions of libggml that the binding does not declare."""

    def __init__(self, folder: Path) -> None:
        self._base = ctypes.CDLL(str(folder / "libggml-base.so"))
        self._ggml = ctypes.CDLL(str(folder / "libggml.so"))
        self._declare(self._base, "ggml_backend_buft_name", ctypes.c_char_p, 1)
        self._declare(self._base, "ggml_backend_buft_is_host", ctypes.c_bool, 1)
        self._declare(self._base, "ggml_backend_buft_get_device", ctypes.c_void_p, 1)
        self._declare(self._base, "ggml_backend_dev_name", ctypes.c_char_p, 1)
        self._declare(self._base, "ggml_backend_dev_type", ctypes.c_int, 1)
        self._declare(self._base, "ggml_backend_reg_get_proc_address", ctypes.c_void_p, 2)
        self._declare(self._ggml, "ggml_backend_dev_by_name", ctypes.c_void_p, 1)
        self._declare(self._ggml, "ggml_backend_reg_by_name", ctypes.c_void_p, 1)
        self._declare(self._ggml, "ggml_backend_register", None, 1)
        self._declare(self._ggml, "ggml_backend_load_all", None, 0)
        self._ggml.ggml_backend_load_all()

    @staticmethod
    def _declare(library: ctypes.CDLL, name: str, result: Any, n_args: int) -> None:
        function = getattr(library, name)
        function.restype = result
        function.argtypes = [ctypes.c_void_p] * n_args

    def add_rpc(self, endpoint: str) -> None:
        """Register the devices of an RPC server, as `--rpc` does (common/arg.cpp)."""
        registry = self._ggml.ggml_backend_reg_by_name(b"RPC")
        address = registry and self._base.ggml_backend_reg_get_proc_address(
            registry, b"ggml_backend_rpc_add_server"
        )
        if not address:
            raise ProbeError(EXIT_DEVICE, "this build of llama.cpp has no RPC backend")
        add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
        added = add(endpoint.encode())
        if not added:
            raise ProbeError(EXIT_DEVICE, f"no RPC server answers at {endpoint}")
        self._ggml.ggml_backend_register(added)

    def devices(self, names: list[str]) -> Any:
        """The NULL-terminated device list of `--device`; `None` when all devices are meant."""
        if not names:
            return None
        if names == ["none"]:
            return (ctypes.c_void_p * 1)(None)
        found = []
        for name in names:
            device = self._ggml.ggml_backend_dev_by_name(name.encode())
            if not device or self._base.ggml_backend_dev_type(device) == DEVICE_TYPE_CPU:
                raise ProbeError(EXIT_DEVICE, f"llama.cpp has no device {name}")
            found.append(device)
        return (ctypes.c_void_p * (len(found) + 1))(*found, None)

    def name(self, buffer_type: int) -> str:
        """The buffer type's name, `CPU_REPACK` say."""
        name: bytes = self._base.ggml_backend_buft_name(buffer_type)
        return name.decode()

    def device_of(self, buffer_type: int) -> str | None:
        """The device whose memory the buffer type takes; `None` for the host's."""
        device = self._base.ggml_backend_buft_get_device(buffer_type)
        on_host = self._base.ggml_backend_buft_is_host(buffer_type)
        if on_host or not device or self._base.ggml_backend_dev_type(device) == DEVICE_TYPE_CPU:
            return None
        return self.name_of_device(device)

    def name_of_device(self, device: int) -> str | None:
        """The device's name; `None` for the CPU."""
        if self._base.ggml_backend_dev_type(device) == DEVICE_TYPE_CPU:
            return None
        name: bytes = self._base.ggml_backend_dev_name(device)
        return name.decode()
