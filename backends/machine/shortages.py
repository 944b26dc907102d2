"""Errors for a machine's limits on a process; they name the limit, its value, and what to do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from typing import Final

from backends.machine.cgroups import parse_cgroup_paths, parse_figure, read_text
from budget.errors import KeeperUnavailable

_CGROUPS: Final = "/sys/fs/cgroup"
_NO_THREAD: Final = "can't start new thread"
_LIMITS: Final = {
    "n": (resource.RLIMIT_NOFILE, "{} open files", 1),
    "u": (resource.RLIMIT_NPROC, "{} processes and threads of this user", 1),
    "v": (resource.RLIMIT_AS, "an address space of {} KiB", 1024),
    "d": (resource.RLIMIT_DATA, "{} KiB of data", 1024),
    "f": (resource.RLIMIT_FSIZE, "files of {} bytes", 1),
}
"""By the option of `ulimit` that sets them: the limit, how it is said, and its unit in bytes."""
_FILES: Final = "n"
_MEMORY: Final = "vd"
_THREADS: Final = "uvd"
_FILE_BYTES: Final = "f"
_RAISE: Final = "Raise the limit, or start keepwarm where it does not hold."
_KINDS: Final[dict[int, tuple[str, str]]] = {
    errno.EMFILE: (_FILES, f"{_RAISE} A keeper needs 64 open files, and one for each client."),
    errno.ENFILE: (
        "",
        "The whole machine has as many open files as it may (`sysctl fs.file-max`).",
    ),
    errno.EAGAIN: (_THREADS, _RAISE),
    errno.ENOMEM: (_MEMORY, f"{_RAISE} Without one, the machine's memory is short."),
    errno.EFBIG: (_FILE_BYTES, _RAISE),
    errno.EACCES: (
        "",
        "Look at the owner and the mode of what it names, and of the folders around it.",
    ),
    errno.EPERM: (
        "",
        "This user may not do that: look at the owner of what it names, and at sandboxes.",
    ),
    errno.ENOSPC: ("", "Make room on the disk of what it names."),
    errno.EDQUOT: ("", "Make room in this user's quota on the disk of what it names."),
    errno.EROFS: ("", "The file system of what it names is read-only: choose another folder."),
}


def refused(error: BaseException, what: str) -> KeeperUnavailable | None:
    """The typed error if the machine refused a resource; None for any other failure.

    Args:
        error: the raised error.
        what: the failed work, as the beginning of a sentence.
    """
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        said, names, hint = "no further thread can be started", _THREADS, _RAISE
    elif isinstance(error, MemoryError):
        said, (names, hint) = "out of memory", _KINDS[errno.ENOMEM]
    elif isinstance(error, OSError):
        said = error.strerror or str(error) or type(error).__name__
        if error.filename is not None:
            said += f": {os.fsdecode(error.filename)}"
        names, hint = _KINDS.get(error.errno or 0, ("", "Look after what it names."))
    else:
        return None
    found = list(_in_force(names))
    limits = f" Limits here: {', '.join(found)}." if found else ""
    return KeeperUnavailable(f"{what}: {said}.{limits}", hint=hint, limits=found)


def narrow_limits() -> str:
    """The limits of memory and threads on this process, in words; empty without limits."""
    return ", ".join(_in_force(_THREADS))


def _in_force(options: str) -> Iterator[str]:
    for option in options:
        number, text, unit = _LIMITS[option]
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            yield f"{text.format(soft // unit)} (`ulimit -{option}`)"
    if "u" in options and (most := _most_of_cgroup()) is not None:
        yield f"{most} processes and threads of this container (`pids.max`)"


def _most_of_cgroup() -> int | None:
    """How many threads the processes of this one's control group may have, as far as that is told."""
    unified, first = parse_cgroup_paths(read_text("/proc/self/cgroup") or "", "pids")
    places = ((_CGROUPS, unified), (f"{_CGROUPS}/pids", first))
    found = (parse_figure(read_text(f"{root}/{path}/pids.max")) for root, path in places if path)
    return next((most for most in found if most is not None), None)
