"""Records for tests, at times that count from one fixed point of a run."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from traces import EvictSpan, LoadSpan, RequestRecord

MS = 1_000_000


def now() -> int:
    """The machine's monotonic time, in nanoseconds."""
    return time.monotonic_ns()


def load(load_id: str, start_ns: int, *, ms: int = 100, **changes: Any) -> LoadSpan:
    """A load of model `m` on the host."""
    fields: dict[str, Any] = {
        "model": "m",
        "device": "host",
        "bytes": 1000,
        "storage": "staged",
        "reason": "asked for",
        "engine": "llama.cpp",
    } | changes
    return LoadSpan(load_id, start_ns=start_ns, end_ns=start_ns + ms * MS, **fields)


def evict(evict_id: str, start_ns: int, *, ms: int = 5, **changes: Any) -> EvictSpan:
    """An eviction of model `old` from the host."""
    fields: dict[str, Any] = {"model": "old", "device": "host", "bytes": 1000} | changes
    return EvictSpan(evict_id, start_ns=start_ns, end_ns=start_ns + ms * MS, **fields)


def request(request_id: str, queued_ns: int, **changes: Any) -> RequestRecord:
    """A request that waits 10 ms, is sent 1 ms later, has a token after 20 ms and ends after 50 ms."""
    fields: dict[str, Any] = {
        "model": "m",
        "engine": "llama.cpp",
        "slot": 0,
        "granted_ns": queued_ns + 10 * MS,
        "sent_ns": queued_ns + 11 * MS,
        "first_token_ns": queued_ns + 31 * MS,
        "end_ns": queued_ns + 61 * MS,
        "prompt_tokens": 12,
        "completion_tokens": 6,
        "finish_reason": "stop",
    } | changes
    return RequestRecord(request_id, queued_ns=queued_ns, **fields)


def events(path: Path) -> list[dict[str, Any]]:
    """The events of a finished trace file."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def written(path: Path, phase: str = "X") -> Counter[str]:
    """How many events of one phase the file holds, by name."""
    return Counter(event["name"] for event in events(path) if event["ph"] == phase)
