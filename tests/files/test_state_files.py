"""Small files are whole or absent, and what lies in their place cannot hurt."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from backends.foreign import foreign_json
from backends.foreign.foreign_json import BadJson, parse_json
from backends.machine.files.whole_files import read_regular, read_shape, write_whole


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """A failing write changes nothing and leaves no new file behind."""
    path = tmp_path / "state.json"
    write_whole(path, b"old")
    path.with_name("folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "state.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_fifo_in_place_of_a_state_file_is_refused_at_once(tmp_path: Path) -> None:
    """Opening a FIFO would wait for a writer for ever."""
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "state.json")


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 3000, b'{"a": 1e999}', b"\xff\xfe", b"NaN"])
def test_a_damaged_state_file_is_set_aside_with_one_line(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is never fatal, never lost, and said once."""
    path = tmp_path / "state.json"
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING, logger="keepwarm.files"):
        assert read_shape(path, "the state", dict) is None
    assert len(caplog.records) == 1
    assert not path.exists()
    assert path.with_name("state.json.damaged").read_bytes() == damage


def test_foreign_json_is_bounded_in_depth_and_finite() -> None:
    """Depth, infinite numbers and endless integers are refused; brackets in strings do not count."""
    assert parse_json(json.dumps({"a": ["[" * 500, 1.5, 10**20]})) == {
        "a": ["[" * 500, 1.5, 10**20]
    }
    assert parse_json(b"[" * 64 + b"]" * 64)
    for bad in (
        b"[" * 65 + b"]" * 65,
        b"-Infinity",
        b"[1e400]",
        b'{"a": -12.5E+400}',
        b"1e400",
        b"1" * 41,
        b'{"a":' * 5000,
    ):
        with pytest.raises(BadJson):
            parse_json(bad)


def test_what_looks_like_an_exponent_in_a_name_costs_no_look_at_each_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Builds of llama.cpp are called `b1-0c1e570`, in each of their answers."""

    def looked(text: str) -> float:
        raise AssertionError(text)

    monkeypatch.setattr(foreign_json, "_CHECKING", json.JSONDecoder(parse_float=looked))
    assert parse_json(b'{"id":"b1-0c1e570","e":1.5}') == {"id": "b1-0c1e570", "e": 1.5}


def test_an_error_that_is_not_the_parsers_is_not_taken_for_bad_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler of the program's own signals may raise while a document is read."""

    class Interrupted:
        def decode(self, _text: str) -> object:
            raise ValueError("the handler's own")

    monkeypatch.setattr(foreign_json, "_PLAIN", Interrupted())
    with pytest.raises(ValueError, match="the handler's own") as caught:
        parse_json(b"{}")
    assert not isinstance(caught.value, BadJson)


def test_a_device_or_a_fifo_is_never_replaced(tmp_path: Path) -> None:
    """Root could put a file in the place of /dev/null, for every program of the machine."""
    path = tmp_path / "state.json"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        write_whole(path, b"new")
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]
