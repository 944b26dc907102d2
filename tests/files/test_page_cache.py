"""The page cache: a share that the kernel hides is unknown, and an unreadable file is an error at once."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.machine.files import page_cache
from backends.machine.files.page_cache import (
    cached_fraction,
    drop_from_page_cache,
    missing_bytes,
    resident_fraction,
    stage_file,
)
from budget.errors import BadModelFile
from shim.keeper.engines.staging import Stager
from shim.keeper.shell.history import StageStory
from tests.users import OTHER_UID, Say, as_root, said_by_other_user

SIZE = 3 * (1 << 20) + 1


@pytest.fixture
def shared() -> Iterator[Path]:
    """A model file of this user in a folder that everyone may read; it lies in the page cache."""
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "model.gguf"
        path.write_bytes(b"x" * SIZE)
        path.chmod(0o644)
        yield path


def test_the_share_of_an_own_file_is_known(shared: Path) -> None:
    """All of it when it was just written; nothing is missing then."""
    assert resident_fraction(shared) == 1.0
    assert missing_bytes(shared) == 0
    assert cached_fraction({shared: SIZE}) == 1.0


@as_root
def test_what_the_kernel_does_not_tell_is_unknown_and_read(shared: Path) -> None:
    """To another user `mincore` claims that any file is there: all of it counts as missing."""

    def look(say: Say) -> None:
        cached = cached_fraction({shared: SIZE})
        say((os.geteuid(), resident_fraction(shared), missing_bytes(shared), cached))

    assert said_by_other_user(look) == str((OTHER_UID, None, SIZE, None))


@as_root
def test_a_shared_model_folder_is_staged(shared: Path) -> None:
    """Its files are read, also those of another owner."""

    def stage() -> int:
        record = StageStory("engine", "model", 0)

        async def run() -> None:
            await Stager(None).owed_event("engine", [shared], record).work()

        asyncio.run(run())
        return record.read_bytes

    # This also imports what another user may not be able to read.
    assert stage() == 0, "its owner knows that it is there"
    assert said_by_other_user(lambda say: say(stage())) == str(SIZE)


@as_root
def test_another_user_that_may_write_gets_the_share(shared: Path) -> None:
    """The kernel answers a process that could find out by other means."""
    shared.chmod(0o666)
    assert said_by_other_user(lambda say: say(resident_fraction(shared))) == "1.0"


def test_a_file_that_cannot_be_mapped_is_unknown(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse; staging reads it then."""

    def refuses(*_: object, **__: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refuses)
    assert resident_fraction(shared) is None
    assert missing_bytes(shared) == SIZE
    assert asyncio.run(stage_file(shared)) == SIZE


def test_large_files_are_asked_about_in_pieces(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum is the same as over the whole."""
    monkeypatch.setattr(page_cache, "_ASKED_BYTES", 1 << 20)
    assert resident_fraction(shared) == 1.0
    os.truncate(shared, 2 * SIZE)
    fraction = resident_fraction(shared)
    assert fraction is not None
    assert 0.4 < fraction < 0.6, "the hole behind its end lies nowhere"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _socket, lambda _: None])
def test_what_is_no_file_is_refused_without_waiting(
    runtime_dir: Path, make: Callable[[Path], object]
) -> None:
    """A FIFO, a folder, a socket, nothing: for every way in."""
    path = runtime_dir / "m"
    make(path)
    for ask in (
        resident_fraction,
        missing_bytes,
        drop_from_page_cache,
        lambda p: asyncio.run(stage_file(p)),
    ):
        with pytest.raises(BadModelFile):
            ask(path)


def test_a_disk_that_fails_while_staging_is_typed(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file."""

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", fails)
    with pytest.raises(BadModelFile, match="Input/output error"):
        asyncio.run(stage_file(shared))


def test_a_file_that_is_cut_while_it_is_staged_ends_the_staging(shared: Path) -> None:
    """What is gone is not waited for."""
    fractions: list[float] = []

    def cut(fraction: float) -> None:
        fractions.append(fraction)
        os.truncate(shared, 0)

    assert asyncio.run(stage_file(shared, on_progress=cut)) == SIZE
    assert fractions == [1.0]
    assert resident_fraction(shared) == 1.0, "an empty file"
