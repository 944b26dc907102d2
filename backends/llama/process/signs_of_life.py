"""Signs of life of a llama-server: what the kernel counts for its process, and what its slots say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from backends.base import SlotSigns

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STOPPED: Final = frozenset("Tt")


def process_state(pid: int) -> tuple[bool, float] | None:
    """Whether a process is stopped, and the CPU seconds it has used; None when it has ended.

    From `/proc/PID/stat`: the state (`T` by a signal, `t` by a debugger), utime and stime.
    """
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        # The name of the program, in brackets, may hold blanks and brackets.
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return None
    return fields[0] in _STOPPED, ticks / _TICKS_PER_S


def slot_signs(slots: Sequence[Mapping[str, Any]]) -> SlotSigns:
    """What the rows of `/slots` say of all slots together.

    While a batch of a prompt is computed (2,048 tokens) its slot's row stays as it is.
    """
    busy = [slot for slot in slots if slot.get("is_processing")]
    moved = tuple(
        (
            _count(slot, "id_task"),
            _count(slot, "n_prompt_tokens"),
            _count(slot, "n_prompt_tokens_processed"),
            _decoded(slot),
        )
        for slot in slots
    )
    return SlotSigns(len(busy), any(_decoded(slot) == 0 for slot in busy), moved)


def _count(slot: Mapping[str, Any], key: str) -> int:
    value = slot.get(key)
    return value if isinstance(value, int) else 0


def _decoded(slot: Mapping[str, Any]) -> int:
    following = slot.get("next_token")
    row = following[0] if isinstance(following, list) and following else following
    return _count(row, "n_decoded") if isinstance(row, Mapping) else 0
