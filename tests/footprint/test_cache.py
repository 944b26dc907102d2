"""The cache of measurements: keys, damage, permissions, many writers at once."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.cache import FootprintCache, cache_key
from backends.footprint.dry_run import BufferBytes, DryRun
from budget.footprint import EngineArgs

RUN = DryRun((BufferBytes("CPU", "host", 10, 20, 30),), 4, 8, 2, 256, 0.5)
ARGS = EngineArgs(n_ctx=2048)


def test_a_measurement_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    """Every field survives, and the file is the user's alone."""
    cache = FootprintCache(tmp_path / "deep" / "folder")
    cache.put("k", RUN)
    assert cache.get("k") == RUN
    assert (cache.folder / "k.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "other",
    [
        cache_key("file2", ARGS, "build"),
        cache_key("file", replace(ARGS, n_ctx=4096), "build"),
        cache_key("file", replace(ARGS, extra=("--x",)), "build"),
        cache_key("file", ARGS, "build2"),
    ],
)
def test_file_arguments_and_build_each_change_the_key(other: str) -> None:
    """A measurement is never taken for another file, placement or llama.cpp."""
    assert other != cache_key("file", ARGS, "build")


WRONG = json.dumps({**RUN.to_json(), "output_bytes": -1})


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"buffers": 1}', '{"buffers": [{}]}', "\x00", WRONG]
)
def test_a_damaged_entry_is_a_miss_that_is_set_aside_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever lies there, the caller measures again."""
    cache = FootprintCache(tmp_path)
    (tmp_path / "k.json").write_text(damage)
    assert cache.get_or_measure("k", lambda: RUN) == RUN
    assert ["a cached footprint" in r.getMessage() for r in caplog.records] == [True]
    assert (tmp_path / "k.json.damaged").read_text() == damage
    assert cache.get("k") == RUN


def test_damaged_bytes_of_side_files_are_measured_again(tmp_path: Path) -> None:
    """Bytes by device are whole numbers of bytes."""
    cache = FootprintCache(tmp_path)
    for damage in ("[]", "{}", '{"host": -1}', '{"host": "9"}', '{"host": 1e18}'):
        (tmp_path / "k.json").write_text(damage)
        assert cache.bytes_or_measure("k", lambda: {"host": 9}) == {"host": 9}
        assert cache.bytes_or_measure("k", dict) == {"host": 9}


def test_a_kept_measurement_is_not_made_again(tmp_path: Path) -> None:
    """The second look-up runs nothing."""
    cache = FootprintCache(tmp_path)
    calls: list[int] = []

    def measure() -> DryRun:
        calls.append(1)
        return RUN

    assert cache.get_or_measure("k", measure) == cache.get_or_measure("k", measure)
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file where the folder should be: measured every time, and said once."""
    (tmp_path / "taken").write_text("")
    cache = FootprintCache(tmp_path / "taken")
    with caplog.at_level(logging.WARNING, "keepwarm"):
        for key in "kl":
            assert cache.get_or_measure(key, lambda: RUN) == RUN
    writing = [r for r in caplog.records if "is not kept" in r.getMessage()]
    assert len(writing) == 1


def test_many_writers_leave_one_whole_entry(tmp_path: Path) -> None:
    """Writers that race leave a readable entry and no temporary file."""
    cache = FootprintCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.put("k", RUN), range(200)))
    assert cache.get("k") == RUN
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"]


@pytest.mark.parametrize("field", ["mmproj", "draft_model", "lora"])
def test_a_file_beside_the_model_counts_as_what_it_is_not_as_its_path(
    field: str, tmp_path: Path
) -> None:
    """Replaced it makes another key, renamed it does not; a missing one is no other missing one."""
    path, other = tmp_path / "a.gguf", tmp_path / "b.gguf"

    def key(file: Path) -> str:
        value = (str(file),) if field == "lora" else str(file)
        return cache_key("file", replace(ARGS, **{field: value}), "build")  # type: ignore[arg-type]

    assert len({key(path), key(other), cache_key("file", ARGS, "build")}) == 3
    path.write_bytes(b"one")
    first = key(path)
    path.rename(other)
    assert key(other) == first
    path.write_bytes(b"two")
    assert key(path) != first
    os.utime(other, ns=(1, 1))
    assert key(other) != first
