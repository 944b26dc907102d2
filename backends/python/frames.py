"""The frames that a Python worker and its callers exchange.

A frame is a fixed prefix, a JSON head, bytes, and perhaps one sealed memory file with the large bytes
(docs/decisions/0025-what-a-python-worker-speaks.md). Both ends use this file: the worker in the user's
interpreter (Python 3.9 or newer), so it needs the standard library, and numpy only where arrays are sent.
"""

from __future__ import annotations

import dataclasses
import enum
import fcntl
import importlib
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = struct.Struct("!4sIIQ")
"""A mark, and the sizes of the head, of the bytes that follow it, and of the memory file."""
MARK = b"kpw1"
SHARED_FROM = 64 << 10
"""Bytes and arrays of this size or more go by the memory file."""
MOST_INLINE = 16 << 20
"""Beyond so many bytes in small parts, they go by the memory file as well."""
MOST_HEAD = 1 << 28
MOST_DEPTH = 100
SEALED = 0x2 | 0x4 | 0x8
"""F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE: its bytes stay as they are while it is read."""
_PART, _PLAIN = "$part", "$plain"
_ALIGNED = 64
_MOST_FDS = 4
_PIECE = 1 << 20
_KINDS = "biufcSUmM"
"""Kinds of numpy's types that are plain bytes."""


class Unsendable(TypeError):
    """A value that is neither JSON, bytes nor an array."""


class BadFrame(ValueError):
    """What came is no frame of this protocol."""


class _Packing:
    """Takes bytes and arrays out of a value, and gives the rest as JSON data."""

    def __init__(self) -> None:
        self.parts: list[list[Any]] = []
        self.inline: list[Any] = []
        self.shared: list[tuple[int, Any]] = []
        self.inline_bytes = self.shared_bytes = 0
        self.raised: Exception | None = None

    def _made(self, items: Iterator[Any]) -> Iterator[Any]:
        """What an iterator makes. What its code raises is no fault of the value, and is raised as it is."""
        try:
            yield from items
        except Exception as error:
            self.raised = error
            raise

    def pack(self, value: Any, path: str, depth: int = 0) -> Any:
        """The JSON data of a value. `path` is its place, for errors."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value.value if isinstance(value, enum.Enum) else value
        if depth > MOST_DEPTH:
            raise Unsendable(f"{path[:200]} is nested more than {MOST_DEPTH} deep")
        if isinstance(value, (bytes, bytearray, memoryview)):
            view = memoryview(value)
            return self._part(
                view if view.c_contiguous else memoryview(bytes(view)), "bytes", "", []
            )
        if isinstance(value, Mapping):
            return self._table(value, path, depth)
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return self._table(value._asdict(), path, depth)
        if hasattr(value, "read"):
            raise Unsendable(f"{path} is an open file; send its bytes, or its path")
        if isinstance(value, Iterator):
            value = self._made(value)
        if isinstance(value, (list, tuple, Iterator)):
            return [self.pack(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        return self._object(value, path, depth)

    def _object(self, value: Any, path: str, depth: int) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in "biuf":
            return value.item()
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu().numpy()
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._array(numpy, value, path)
        if isinstance(value, enum.Enum):
            return self.pack(value.value, path, depth)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return self._table(fields, path, depth)
        name = type(value).__qualname__
        raise Unsendable(
            f"{path} is of type {name}, which is neither JSON, bytes nor a numpy array"
        )

    def _table(self, table: Any, path: str, depth: int) -> Any:
        for key in table:
            if not isinstance(key, str):
                raise Unsendable(f"{path} has the key {key!r:.60}; keys are texts")
        data = {key: self.pack(item, f"{path}.{key}", depth + 1) for key, item in table.items()}
        return {_PLAIN: data} if _PART in data or _PLAIN in data else data

    def _array(self, numpy: Any, array: Any, path: str) -> Any:
        if array.dtype.kind not in _KINDS:
            raise Unsendable(f"{path} is an array of {array.dtype}, which has no plain bytes")
        whole = numpy.ascontiguousarray(array)
        view = memoryview(whole.reshape(-1).view(numpy.uint8)) if whole.size else memoryview(b"")
        return self._part(view, "array", array.dtype.str, list(array.shape))

    def _part(self, view: memoryview, kind: str, dtype: str, shape: list[int]) -> Any:
        view = view.cast("B") if view.nbytes else memoryview(b"")
        size = view.nbytes
        if size < SHARED_FROM and self.inline_bytes + size <= MOST_INLINE:
            self.parts.append([kind, "inline", self.inline_bytes, size, dtype, shape])
            self.inline.append(view)
            self.inline_bytes += size
        else:
            at = -(-self.shared_bytes // _ALIGNED) * _ALIGNED
            self.parts.append([kind, "shared", at, size, dtype, shape])
            self.shared.append((at, view))
            self.shared_bytes = at + size
        return {_PART: len(self.parts) - 1}


def framed(op: str, value: Any, name: str = "the value") -> tuple[bytes, int]:
    """A frame's bytes, and the descriptor that goes with it (-1 without one), which the caller closes.

    Raises:
        Unsendable: the value, or something in it, cannot be sent; says which, by `name`.
    """
    packing = _Packing()
    try:
        data = packing.pack(value, name)
        head = json.dumps({"op": op, "value": data, "parts": packing.parts}).encode()
    except (RecursionError, ValueError) as error:
        if error is packing.raised:
            raise
        raise Unsendable(f"{name} cannot be sent: {error}") from None
    if len(head) > MOST_HEAD:
        raise Unsendable(f"{name} is {len(head)} bytes of JSON; send bytes or arrays")
    fd = _memory_file(packing) if packing.shared_bytes else -1
    prefix = PREFIX.pack(MARK, len(head), packing.inline_bytes, packing.shared_bytes)
    return b"".join([prefix, head, *packing.inline]), fd


def _memory_file(packing: _Packing) -> int:
    fd = os.memfd_create("keepwarm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, packing.shared_bytes)
        for at, view in packing.shared:
            done = 0
            while done < view.nbytes:
                done += os.pwrite(fd, view[done:], at + done)
        fcntl.fcntl(fd, 1033, SEALED)  # F_ADD_SEALS
    except BaseException:
        os.close(fd)
        raise
    return fd


class Incoming:
    """A frame that arrives piece by piece. Owns the descriptors that came with it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []
        self._sizes: tuple[int, int, int] | None = None

    @property
    def wanted(self) -> int:
        """How many bytes are still to come, as far as is known; 0 when the frame is whole."""
        if self._sizes is None:
            return PREFIX.size - len(self._data)
        return PREFIX.size + self._sizes[0] + self._sizes[1] - len(self._data)

    def take(self, sock: socket.socket) -> int:
        """Read once from a socket; returns the number of bytes, 0 at its end."""
        room = socket.CMSG_SPACE(_MOST_FDS * 4)
        data, ancillary, _, _ = sock.recvmsg(
            min(self.wanted, _PIECE), room, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])
        self._data += data
        if not MARK.startswith(self._data[: len(MARK)]):
            raise BadFrame("these are no frames of keepwarm")
        if self._sizes is None and len(self._data) == PREFIX.size:
            _, *sizes = PREFIX.unpack(self._data)
            if sizes[0] > MOST_HEAD or sizes[1] > MOST_INLINE:
                raise BadFrame("a frame is larger than any may be")
            self._sizes = (sizes[0], sizes[1], sizes[2])
        return len(data)

    def value(self) -> tuple[str, Any]:
        """The op and the value of a whole frame.

        Raises:
            BadFrame: it is not well-formed.
        """
        try:
            head_size, _, shared_size = self._sizes or (0, 0, 0)
            body = memoryview(self._data)[PREFIX.size :]
            head = json.loads(bytes(body[:head_size]))
            shared = self._mapped(shared_size) if shared_size else memoryview(b"")
            places = {"inline": body[head_size:], "shared": shared}
            parts = [_whole(row, places) for row in head["parts"]]
            return str(head["op"]), _put_back(head["value"], parts)
        except BadFrame:
            raise
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, OSError) as error:
            raise BadFrame(f"a frame is not well-formed: {error!r:.200}") from None
        finally:
            self.close()

    def _mapped(self, size: int) -> memoryview:
        if not self._fds or os.fstat(self._fds[0]).st_size != size:
            raise BadFrame("a frame's memory file is missing, or of another size")
        if fcntl.fcntl(self._fds[0], 1034) & SEALED != SEALED:  # F_GET_SEALS
            raise BadFrame("a frame's memory file is not sealed")
        # Private: what the receiver writes into an array is its own.
        return memoryview(
            mmap.mmap(self._fds[0], size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        )

    def close(self) -> None:
        """Close the descriptors that came. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())


def _whole(row: list[Any], places: dict[str, memoryview]) -> Any:
    kind, place, at, size, dtype, shape = row
    view = places[place][at : at + size]
    if at < 0 or size < 0 or view.nbytes != size:
        raise BadFrame("a part lies outside of its frame")
    if kind == "bytes":
        return bytes(view)
    numpy = importlib.import_module("numpy")
    found = numpy.dtype(dtype)
    if found.kind not in _KINDS:
        raise BadFrame(f"an array of {found}")
    if not size:
        return numpy.empty(shape, found)
    return numpy.frombuffer(view, found).reshape(shape)


def _put_back(data: Any, parts: list[Any]) -> Any:
    if isinstance(data, list):
        return [_put_back(item, parts) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        if _PART in data:
            return parts[data[_PART]]
        if _PLAIN in data:
            data = data[_PLAIN]
    return {key: _put_back(item, parts) for key, item in data.items()}


def sent_with(fd: int) -> list[tuple[int, int, bytes]]:
    """The ancillary data of the first bytes of a frame."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
