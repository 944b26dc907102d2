"""The requests of a run for its line in `runs.jsonl`, kept on the disk while the run goes on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from traces.records import RequestRecord

IN_MEMORY_BYTES: Final = 1_048_576
"""Bytes of requests that are kept in memory; more go to a file without a name."""

_NO_LOAD = '"load_s": 0.0'

_to_json = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


class RequestLines:
    """Requests as they come, and as the run's line tells them at its end.

    Args:
        directory: where the file without a name is made.
        started_ns: monotonic time of the run's start.
        record_content: whether prompts and answers are kept.
    """

    def __init__(self, directory: Path, *, started_ns: int, record_content: bool) -> None:
        self._started_ns = started_ns
        self._record_content = record_content
        # The file lives as long as this object, whose run closes it.
        self._kept = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            IN_MEMORY_BYTES, "w+", encoding="ascii", dir=str(directory)
        )

    def add(self, record: RequestRecord) -> None:
        """Keep a request."""
        fields = self._fields(record)
        row = (fields["arrival_s"], record.waited_for_load or "", _to_json(fields))
        self._kept.write(_to_json(row) + "\n")

    def take(self, load_seconds: Callable[[str | None], float]) -> list[str]:
        """All requests in the order of their arrival, as JSON; none is kept any more.

        Args:
            load_seconds: how long a load took; it may be reported after the request that waited for it.
        """
        self._kept.seek(0)
        rows = sorted(tuple(json.loads(row)) for row in self._kept)
        self._kept.close()
        return [
            text.replace(_NO_LOAD, f'"load_s": {load_seconds(load_id)!r}', 1) if load_id else text
            for _, load_id, text in rows
        ]

    def _fields(self, record: RequestRecord) -> dict[str, Any]:
        """The fields of a `RequestLine`, in its order."""
        first_ns = first_token_ns(record)
        fields = {
            "request_id": record.request_id,
            "model": record.model,
            "engine": record.engine,
            "operation": record.operation,
            "remote": record.remote,
            "cold": record.cold,
            "arrival_s": (record.queued_ns - self._started_ns) / 1e9,
            "waited_s": waited_seconds(record),
            "load_s": 0.0,
            "ttft_s": None if first_ns is None else max(0, first_ns - record.queued_ns) / 1e9,
            "total_s": max(0, record.end_ns - record.queued_ns) / 1e9,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.completion_tokens,
            "tokens_per_s": tokens_per_second(record),
            "finish_reason": record.finish_reason,
            "error": record.error,
        }
        if self._record_content:
            texts = {"prompt": record.prompt, "answer": record.answer}
            fields |= {key: text for key, text in texts.items() if text is not None}
        return fields


def first_token_ns(record: RequestRecord) -> int | None:
    """When the first token arrived: as observed, else by the engine's own figure, else None."""
    if record.first_token_ns is not None:
        return record.first_token_ns
    if record.predicted_ms is None:
        return None
    start_ns = record.queued_ns if record.sent_ns is None else record.sent_ns
    return max(start_ns, record.end_ns - round(record.predicted_ms * 1e6))


def tokens_per_second(record: RequestRecord) -> float | None:
    """Tokens generated a second: by the engine's own figure, else from first token to end.

    A single token has no speed: its engine counts from it on, some microseconds.
    """
    if record.completion_tokens is None or record.completion_tokens < 2:
        return None
    if record.predicted_ms:
        return record.completion_tokens / (record.predicted_ms / 1e3)
    first_ns = record.first_token_ns
    if first_ns is None or record.end_ns <= first_ns:
        return None
    return record.completion_tokens / ((record.end_ns - first_ns) / 1e9)


def waited_seconds(record: RequestRecord) -> float:
    """From asking to the lease, or to the end of a request that got none."""
    until = record.end_ns if record.granted_ns is None else record.granted_ns
    return max(0, until - record.queued_ns) / 1e9
