"""Which files lie on another machine: a question about those may never be answered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_FAR: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"}
    | {"afs", "9p", "autofs", "fuse"}
)


def is_far(path: Path) -> bool:
    """Whether a file, or the folder where it would be, is on a file system that another program serves.

    Ask in a thread: this may not be answered either.
    """
    for place in (path, *path.parents):
        try:
            device = place.stat().st_dev
        except (OSError, ValueError):
            continue
        kind = _kind_of(f"{os.major(device)}:{os.minor(device)}")
        return kind in _FAR or kind.startswith("fuse.")
    return False


def _kind_of(device: str) -> str:
    """The kind of the file system with that number; empty where it is not listed."""
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == device and "-" in fields:
            return (*fields[fields.index("-") + 1 :], "")[0]
    return ""
