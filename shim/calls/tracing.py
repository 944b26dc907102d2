"""Adds calls and the keeper's history to the current run's trace. Costs nothing without a run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from shim.calls.call import Call
from shim.replies import Answer
from traces import CounterSample, EvictSpan, LoadSpan, RequestRecord, RunTrace, names

_NUMBERS = itertools.count(1)


def trace_call(call: Call, answer: Answer | None, error: BaseException | None) -> None:
    """Put a finished call, the load it waited for and the evictions on the run it was made in, if any.

    The records are made later, in the run's own thread.
    """
    run = call.run
    if run is None or not run.active:
        return
    call.end_ns = call.end_ns or time.monotonic_ns()
    run.records(lambda: _records(call, answer, error))


def _records(
    call: Call, answer: Answer | None, error: BaseException | None
) -> Iterator[LoadSpan | EvictSpan | RequestRecord]:
    grant = call.grant
    if grant is not None:
        if grant.load is not None:
            yield from load_spans(grant.load)
        for row in grant.evictions:
            yield from evict_spans(row)
    yield call.record(f"{os.getpid()}-{next(_NUMBERS)}", answer, error)


def trace_history(run: RunTrace, history: Mapping[str, Any]) -> None:
    """Add the keeper's history of a run's time to the run: loads, evictions, the books over time."""
    for row in history["loads"]:
        if row["end_ns"] and not row["error"]:
            for load in load_spans(row):
                run.load(load)
    for row in history["evictions"]:
        if row["end_ns"]:
            for evict in evict_spans(row):
                run.evict(evict)
    for row in history["samples"]:
        run.counter(CounterSample(**row))


def _by_device(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The devices of a load with its bytes there; the device with the most bytes comes first."""
    devices = row.get("devices") or {row["device"]: row["bytes"]}
    return sorted(devices.items(), key=lambda part: part[0] != row["device"])


def load_spans(row: Mapping[str, Any]) -> list[LoadSpan]:
    """A load of the keeper's history as a trace shows it: once on each device that it is on."""
    return [_load_span(row, device, n_bytes) for device, n_bytes in _by_device(row)]


def _load_span(row: Mapping[str, Any], device: str, n_bytes: int) -> LoadSpan:
    return LoadSpan(
        load_id=row["load_id"],
        model=row["model"],
        device=device,
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        bytes=n_bytes,
        storage=row["storage"] or "staged",
        reason=row["reason"],
        engine=row["engine"],
        attributes=_attributes(
            row, restore_s=names.RESTORE_SECONDS, restored_tokens=names.RESTORED_TOKENS
        ),
    )


def evict_spans(row: Mapping[str, Any]) -> list[EvictSpan]:
    """An eviction of the keeper's history as a trace shows it: once on each device."""
    return [_evict_span(row, device, n_bytes) for device, n_bytes in _by_device(row)]


def _evict_span(row: Mapping[str, Any], device: str, n_bytes: int) -> EvictSpan:
    wanted = row["reason"].removeprefix("evicted for ")
    return EvictSpan(
        evict_id=row["evict_id"],
        model=row["model"],
        device=device,
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        bytes=n_bytes,
        reason=row["reason"],
        for_model=wanted if wanted != row["reason"] else None,
        attributes=_attributes(row, save_s=names.SAVE_SECONDS, saved_bytes=names.SAVED_BYTES),
    )


def _attributes(row: Mapping[str, Any], **fields: str) -> dict[str, Any]:
    """The fields of a row that are not zero, under the names they have on a trace."""
    return {name: row[field] for field, name in fields.items() if row.get(field)}
