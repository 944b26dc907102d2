"""The frames of Python workers: every value that may be sent comes back, and nothing else passes."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import socket
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.python.frames import (
    MARK,
    PREFIX,
    SHARED_FROM,
    BadFrame,
    Incoming,
    Unsendable,
    framed,
    sent_with,
)


def passed(data: bytes, fd: int = -1) -> Any:
    """The value of a frame that went over a socket."""
    ours, theirs = socket.socketpair()
    incoming = Incoming()
    with ours, theirs:
        ours.settimeout(60)
        theirs.settimeout(60)
        ours.sendmsg([data], sent_with(fd))
        ours.shutdown(socket.SHUT_WR)
        if fd >= 0:
            os.close(fd)
        while incoming.wanted and incoming.take(theirs):
            pass
        try:
            return incoming.value()[1]
        finally:
            incoming.close()


def round_trip(value: Any) -> Any:
    """A value as the other side gets it."""
    return passed(*framed("call", value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"text": "ä\ud800", "n": 2**70, "x": [1.5, float("inf"), True, None], "deep": {"a": {}}},
        {"$part": 0, "$plain": {"$part": "x"}},
        [b"", b"\0\xff", bytes(SHARED_FROM), b"x" * (SHARED_FROM - 1)],
    ],
    ids=["none", "json", "our own marks", "bytes"],
)
def test_json_values_and_bytes_come_back_as_they_were(value: Any) -> None:
    """Also keys that look like the protocol's own."""
    assert round_trip(value) == value


@pytest.mark.parametrize(
    "dtype", ["<f4", ">i2", "|u1", "<c16", "<U3", "|S2", "|b1", "<M8[ns]", "<f2"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (300, 400)])
def test_arrays_keep_type_shape_and_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    """Small ones go along, large ones by the memory file; both may be written to."""
    array = np.zeros(shape, dtype)
    found = round_trip({"a": array, "t": array.T, "every": array[..., None]})
    assert found["a"].dtype == array.dtype
    assert found["a"].shape == shape
    assert found["a"].tobytes() == array.tobytes()
    assert found["t"].shape == array.T.shape
    if shape and array.size:
        found["a"][0] = found["a"][1]


def test_large_parts_share_one_sealed_memory_file() -> None:
    """One descriptor for a frame, whatever is in it; the small frame needs none."""
    data, fd = framed("call", [np.arange(1 << 16), bytes(1 << 17), b"small"])
    try:
        assert len(data) < SHARED_FROM
        assert os.fstat(fd).st_size == (1 << 19) + (1 << 17)
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)
    assert framed("call", {"a": 1})[1] == -1


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


@dataclasses.dataclass
class Segment:
    """As faster-whisper's segments."""

    start: float
    words: tuple[Any, ...] = ()


def test_what_models_return_becomes_plain_data() -> None:
    """Data classes, named tuples, enumerations, numpy's scalars, paths, tuples and iterators."""
    pair = namedtuple("pair", "a b")
    value = {
        "segment": Segment(0.5, (Segment(1.0),)),
        "pair": pair(1, np.float32(0.5)),
        "colour": Colour.RED,
        "path": Path("a.wav"),
        "lazy": (i * i for i in range(3)),
        "flag": np.bool_(True),
    }
    assert round_trip(value) == {
        "segment": {"start": 0.5, "words": [{"start": 1.0, "words": []}]},
        "pair": {"a": 1, "b": 0.5},
        "colour": "red",
        "path": "a.wav",
        "lazy": [0, 1, 4],
        "flag": True,
    }


def nested() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [0, object()]}, r"the value\.a\[1\] is of type object"),
        ({1: 2}, "the value has the key 1; keys are texts"),
        ({"s": {1, 2}}, r"the value\.s is of type set"),
        (nested(), "nested more than"),
        ([np.array([object()])], "an array of object, which has no plain bytes"),
        ([10**5000], "cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_place(value: Any, words: str) -> None:
    """Nothing is pickled, and nothing is sent as its `repr`."""
    with pytest.raises(Unsendable, match=words):
        framed("call", value)


def test_an_open_file_is_refused(tmp_path: Path) -> None:
    """It would be sent as a list of its lines."""
    with (tmp_path / "x").open("wb") as file, pytest.raises(Unsendable, match="an open file"):
        framed("call", {"audio": file})


def frame(head: Any, inline: bytes = b"", shared: int = 0, mark: bytes = MARK) -> bytes:
    """A frame with any head."""
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    return PREFIX.pack(mark, len(raw), len(inline), shared) + raw + inline


HEAD = {"op": "call", "value": {"$part": 0}}


@pytest.mark.parametrize(
    "data",
    [
        frame({}, mark=b"HTTP"),
        frame(b"{not json"),
        frame([]),
        frame({"op": "call", "value": {"$part": 3}, "parts": []}),
        frame({**HEAD, "parts": [["bytes", "inline", 0, 5, "", []]]}, b"abc"),
        frame({**HEAD, "parts": [["bytes", "inline", -2, 1, "", []]]}, b"abc"),
        frame({**HEAD, "parts": [["bytes", "elsewhere", 0, 1, "", []]]}, b"abc"),
        frame({**HEAD, "parts": [["array", "inline", 0, 8, "|O", [1]]]}, bytes(8)),
        frame({**HEAD, "parts": [["array", "inline", 0, 8, "<f4", [-1, -1]]]}, bytes(8)),
        frame({**HEAD, "parts": [["array", "inline", 0, 8, "<f4", [3]]]}, bytes(8)),
        frame({**HEAD, "parts": [["bytes", "shared", 0, 8, "", []]]}, shared=8),
        struct.pack("!4sIIQ", MARK, 1 << 31, 0, 0),
        struct.pack("!4sIIQ", MARK, 2, 1 << 31, 0),
    ],
)
def test_a_frame_that_is_not_well_formed_is_a_bad_frame(data: bytes) -> None:
    """Another program's bytes, sizes that do not fit, objects, a memory file that did not come."""
    with pytest.raises(BadFrame):
        passed(data)


def test_a_memory_file_that_may_still_change_is_refused() -> None:
    """Bytes that shrink while they are read would end the reader with a bus error."""
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 8)
    with pytest.raises(BadFrame, match="not sealed"):
        passed(frame({**HEAD, "parts": [["bytes", "shared", 0, 8, "", []]]}, shared=8), fd)
