"""Faults of files and disks: models that change, disks that are full or slow.

Each function says whether its fault was done, and has put right what lasts when it returns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from campaign.place import Place
from campaign.process_faults import limited

BLKIO = Path("/sys/fs/cgroup/blkio")
SLOW_BYTES_A_SECOND = 1_000_000


@contextlib.contextmanager
def _model(place: Place) -> Iterator[Path]:
    """One model's file, whole again afterwards."""
    path = place.models[place.chance.choice(sorted(place.models))]
    with whole_again(path):
        yield path
        time.sleep(place.chance.random() * 0.5)


@contextlib.contextmanager
def whole_again(path: Path) -> Iterator[None]:
    """A file that is written anew at the end."""
    whole = path.read_bytes()
    try:
        yield
    finally:
        replace(path, whole)


def replace(path: Path, data: bytes) -> None:
    """Another file takes the place of one, at once."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def model_touched(place: Place) -> bool:
    """A model file gets another time."""
    os.utime(place.models[place.chance.choice(sorted(place.models))])
    return True


def model_truncated(place: Place) -> bool:
    """A model file is cut, in its header or in its tensors."""
    with _model(place) as path:
        os.truncate(path, int(path.stat().st_size * place.chance.choice((0.0, 0.001, 0.5, 0.99))))
    return True


def model_deleted(place: Place) -> bool:
    """A model file is not there for a moment."""
    with _model(place) as path:
        path.unlink()
    return True


def model_replaced(place: Place) -> bool:
    """Another model takes the place of one, at once."""
    with _model(place) as path:
        replace(path, place.chance.choice(sorted(place.models.values())).read_bytes())
    return True


def model_garbled(place: Place) -> bool:
    """A model file holds noise."""
    with _model(place) as path:
        path.write_bytes(place.chance.randbytes(10_000))
    return True


def no_file_grows(place: Place) -> bool:
    """No file of the keeper's, nor of the engines that it starts, can grow."""
    return limited(place.keeper_pid(), resource.RLIMIT_FSIZE, 0)


def kv_disk_full(place: Place) -> bool:
    """The disk of saved conversations is full."""
    return _full(place, "kv")


def state_disk_full(place: Place) -> bool:
    """The disk of logs and of what is learned is full."""
    return _full(place, "state")


def trace_disk_full(place: Place) -> bool:
    """The disk of the callers' traces is full."""
    return _full(place, "runs")


def _full(place: Place, name: str) -> bool:
    if not place.is_private:
        return False
    ballast = place.root / name / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                _fill(file.fileno(), bytes(size))
        time.sleep(1.0 + place.chance.random())
        return True
    finally:
        ballast.unlink(missing_ok=True)


def _fill(fd: int, block: bytes) -> None:
    try:
        while os.write(fd, block):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def disk_slow(place: Place) -> bool:
    """Models are read from a disk of a megabyte a second."""
    keeper = place.keeper_pid()
    group = BLKIO / f"keepwarm-faults-{os.getpid()}"
    device = place.models["a"].stat().st_dev
    of_all = ":blkio:/\n" in Path("/proc/self/cgroup").read_text()
    if keeper is None or not of_all or not place.models_have_a_disk:
        return False
    pids = [keeper, *place.engines()]
    try:
        group.mkdir()
        number = f"{os.major(device)}:{os.minor(device)}"
        (group / "blkio.throttle.read_bps_device").write_text(f"{number} {SLOW_BYTES_A_SECOND}")
    except OSError:
        _remove(group)
        return False
    try:
        _move(pids, group)
        for path in place.models.values():
            _drop_from_cache(path)
        name = place.chance.choice(sorted(place.models))
        place.unload(name)
        place.ask_soon(name)
        time.sleep(2.0)
    finally:
        _move([int(pid) for pid in (group / "cgroup.procs").read_text().split()], BLKIO)
        _remove(group)
    return True


def _move(pids: list[int], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            (group / "cgroup.procs").write_text(str(pid))


def _remove(group: Path) -> None:
    with contextlib.suppress(OSError):
        group.rmdir()


def _drop_from_cache(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
