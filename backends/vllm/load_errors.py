"""The errors of a vLLM server that does not become ready, by what its log says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from backends.engine_process.log import looks_out_of_memory
from backends.engine_process.process_engine import ending
from budget.errors import LoadFailed, OutOfMemory

_RAISED: Final = re.compile(r"\b([A-Z]\w*(?:Error|Exception)): (.+)")
_NO_CAUSE: Final = "Engine core initialization failed"
_TOO_SMALL: Final = re.compile(
    r"No available memory for the cache|available KV cache memory|less than desired .*utilization"
)
_QUOTED_LINES: Final = 6


def load_error(
    model: str, code: int, lines: Sequence[str], tail: Sequence[str], device: str
) -> LoadFailed:
    """The error of a server that ended while it loaded; `OutOfMemory` where bytes did not suffice.

    Args:
        model: the model's name.
        code: the exit code of its API server; negative: the signal that ended it.
        lines: all kept lines of its log.
        tail: the last lines, for the error.
        device: where its weights go.
    """
    cause = cause_of(lines) or "".join(f"\n  | {line}" for line in tail[-_QUOTED_LINES:])
    lead = f"{model} did not load: vLLM {ending(code)}: {cause}"
    if looks_out_of_memory(lines) or _TOO_SMALL.search(cause):
        return OutOfMemory(
            lead,
            hint="Give it more `bytes`, a smaller context, or fewer slots.",
            model=model,
            device=device,
            exit_code=code,
            log_tail=list(tail),
        )
    return LoadFailed(
        lead,
        hint="Its last lines are in `log_tail`.",
        model=model,
        exit_code=code,
        log_tail=list(tail),
    )


def cause_of(lines: Sequence[str]) -> str:
    """The exception that ended a load; empty where its log has none.

    The engine raises it, and the API server another one that only says that the engine failed.
    """
    raised = [found for line in lines if (found := _RAISED.search(line))]
    causes = [f"{one[1]}: {one[2]}" for one in raised if _NO_CAUSE not in one[2]]
    return causes[-1] if causes else ""
