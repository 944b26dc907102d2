"""From calls and the keeper's history to the run that is being traced. Free when none is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from shim.call import Call
from shim.reply import EmbeddingReply, Reply
from traces import CounterSample, EvictSpan, LoadSpan, RunTrace, current_run, names

_NUMBERS = itertools.count(1)


def trace_call(
    call: Call, answer: Reply | EmbeddingReply | None, error: BaseException | None
) -> None:
    """Put a finished call, the load it waited for and the evictions on the current run, if any."""
    run = current_run()
    if run is None:
        return
    grant = call.grant
    if grant is not None:
        if grant.load is not None:
            run.load(load_span(grant.load))
        for row in grant.evictions:
            run.evict(evict_span(row))
    run.request(call.record(f"{os.getpid()}-{next(_NUMBERS)}", answer, error))


def trace_history(run: RunTrace, history: Mapping[str, Any]) -> None:
    """Put what the keeper did during a run on it: loads, evictions, the books over time."""
    for row in history["loads"]:
        if row["end_ns"] and not row["error"]:
            run.load(load_span(row))
    for row in history["evictions"]:
        if row["end_ns"]:
            run.evict(evict_span(row))
    for row in history["samples"]:
        run.counter(CounterSample(**row))


def load_span(row: Mapping[str, Any]) -> LoadSpan:
    """A load of the keeper's history as a trace shows it."""
    return LoadSpan(
        load_id=row["load_id"],
        model=row["model"],
        device=row["device"],
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        bytes=row["bytes"],
        storage=row["storage"] or "staged",
        reason=row["reason"],
        engine=row["engine"],
        attributes=_told(
            row, restore_s=names.RESTORE_SECONDS, restored_tokens=names.RESTORED_TOKENS
        ),
    )


def evict_span(row: Mapping[str, Any]) -> EvictSpan:
    """An eviction of the keeper's history as a trace shows it."""
    wanted = row["reason"].removeprefix("evicted for ")
    return EvictSpan(
        evict_id=row["evict_id"],
        model=row["model"],
        device=row["device"],
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        bytes=row["bytes"],
        reason=row["reason"],
        for_model=wanted if wanted != row["reason"] else None,
        attributes=_told(row, save_s=names.SAVE_SECONDS, saved_bytes=names.SAVED_BYTES),
    )


def _told(row: Mapping[str, Any], **fields: str) -> dict[str, Any]:
    """The fields of a row that are not zero, under the names they have on a trace."""
    return {name: row[field] for field, name in fields.items() if row.get(field)}
