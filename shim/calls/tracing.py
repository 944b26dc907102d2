"""Adds calls and the keeper's history to the current run's trace. Costs nothing without a run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from backends.openai.protocol import Usage
from shim.calls.call import Call
from shim.replies import Answer, CallReply, Reply
from traces import CounterSample, EvictSpan, Incident, LoadSpan, RequestRecord, RunTrace, names
from traces.recording.held_bytes import held_bytes
from traces.records import Phase

_NUMBERS = itertools.count(1)
_PHASES = (("header", names.HEADER), ("weights", names.WEIGHTS), ("buffers", names.BUFFERS))


def trace_call(call: Call, answer: Answer | None, error: BaseException | None) -> None:
    """Put a finished call, the load it waited for and the evictions on the run it was made in, if any.

    The records are made later, in the run's own thread.
    """
    run = call.run
    if run is None or not run.active:
        return
    call.end_ns = call.end_ns or time.monotonic_ns()
    said = _kept(answer) if isinstance(answer, Reply) else None
    # A Python model counts no tokens.
    usage = None if answer is None or isinstance(answer, CallReply) else answer.usage
    held = _bytes_of(call.request.messages) + (said.content.__sizeof__() if said else 0)
    run.records(lambda: _records(call, said, usage, error), held)


def _kept(reply: Reply) -> Reply:
    """What waits of a reply until its record is made: log-probabilities are large, and no part of it."""
    if not (reply.logprobs or reply.tool_calls or reply.reasoning):
        return reply
    return replace(reply, logprobs=(), tool_calls=(), reasoning="")


def _bytes_of(messages: Any) -> int:
    """About how many, in little time: nearly always each value of a message is a text. Never raises."""
    with suppress(Exception):
        return sum(str.__sizeof__(value) for message in messages for value in message.values())
    return held_bytes(messages)


def _records(
    call: Call, said: Reply | None, usage: Usage | None, error: BaseException | None
) -> Iterator[LoadSpan | EvictSpan | RequestRecord]:
    grant = call.grant
    if grant is not None:
        if grant.load is not None:
            yield from load_spans(grant.load, hidden=False)
        for row in grant.evictions:
            yield from evict_spans(row)
    yield call.record(f"{os.getpid()}-{next(_NUMBERS)}", said, usage, error)


def trace_history(run: RunTrace, history: Mapping[str, Any]) -> None:
    """Add the keeper's history of a run's time to the run: loads, evictions, the books over time."""
    for row in history["loads"]:
        if row["end_ns"] and not row["error"]:
            for load in load_spans(row, hidden=True):
                run.load(load)
    for row in history["evictions"]:
        if row["end_ns"]:
            for evict in evict_spans(row):
                run.evict(evict)
    for row in history["stagings"]:
        if row["end_ns"]:
            run.incident(_read_ahead(row))
    # A keeper that an older keepwarm started has none.
    for row in history.get("notes", ()):
        run.incident(_note(row))
    for row in history["samples"]:
        run.counter(CounterSample(**row))


def _by_device(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The devices of a load with its bytes there; the device with the most bytes comes first."""
    devices = row.get("devices") or {row["device"]: row["bytes"]}
    return sorted(devices.items(), key=lambda part: part[0] != row["device"])


def load_spans(row: Mapping[str, Any], *, hidden: bool) -> list[LoadSpan]:
    """A load of the keeper's history as a trace shows it: once on each device that it is on.

    Args:
        row: the load.
        hidden: whether no request of the run is known to have waited for it.
    """
    return [_load_span(row, device, n_bytes, hidden=hidden) for device, n_bytes in _by_device(row)]


def _load_span(row: Mapping[str, Any], device: str, n_bytes: int, *, hidden: bool) -> LoadSpan:
    attributes = _attributes(
        row,
        restore_s=names.RESTORE_SECONDS,
        restored_tokens=names.RESTORED_TOKENS,
        file_bytes=names.FILE_BYTES,
        read_bytes=names.READ_BYTES,
        placement=names.PLACEMENT,
        bytes_per_s=names.BANDWIDTH,
        best_bytes_per_s=names.BANDWIDTH_BEST,
    )
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
        attributes={names.HIDDEN: hidden, **attributes, **_share(row)},
        phases=_load_phases(row),
    )


def _share(row: Mapping[str, Any]) -> dict[str, Any]:
    """A load's speed as a share of the best; nothing while there is nothing to compare it with."""
    speed, best = row.get("bytes_per_s", 0.0), row.get("best_bytes_per_s", 0.0)
    if not speed or not best:
        return {}
    return {names.BANDWIDTH_SHARE: f"{speed / best:.0%} of the best seen, {best / 1e9:.3g} GB/s"}


def _load_phases(row: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The parts of a load one after another; empty where its engine did not tell them."""
    begins = [(name, row["phases"][key]) for key, name in _PHASES if key in row["phases"]]
    if not begins:
        return ()
    begins.insert(0, (names.SPAWN, row["start_ns"]))
    ends = [max(begin, row["start_ns"]) for _, begin in begins[1:]]
    phases = [
        (name, max(begin, row["start_ns"]), end)
        for (name, begin), end in zip(begins, [*ends, row["ready_ns"]], strict=True)
    ]
    if row["restore_s"]:
        phases.append((names.RESTORE_KV, row["ready_ns"], row["end_ns"]))
    return tuple(phases)


def evict_spans(row: Mapping[str, Any]) -> list[EvictSpan]:
    """An eviction of the keeper's history as a trace shows it: once on each device."""
    return [_evict_span(row, device, n_bytes) for device, n_bytes in _by_device(row)]


def _evict_span(row: Mapping[str, Any], device: str, n_bytes: int) -> EvictSpan:
    wanted = row["reason"].removeprefix("evicted for ")
    saved = _attributes(row, save_s=names.SAVE_SECONDS, saved_bytes=names.SAVED_BYTES)
    phases: tuple[Phase, ...] = ()
    if row["save_s"]:
        until_ns = min(row["end_ns"], row["start_ns"] + int(row["save_s"] * 1e9))
        phases = (
            (names.SAVE_KV, row["start_ns"], until_ns),
            (names.END_PROCESS, until_ns, row["end_ns"]),
        )
    return EvictSpan(
        evict_id=row["evict_id"],
        model=row["model"],
        device=device,
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        bytes=n_bytes,
        reason=row["reason"],
        for_model=wanted if wanted != row["reason"] else None,
        attributes={**saved, **_decision(row["decision"])},
        phases=phases,
    )


def _decision(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a decision record says, each field as an attribute of its own."""
    if record is None:
        return {}
    said = {key: record[key] for key in ("wanted", "policy", "followed", "victims") if record[key]}
    said["candidates"] = {one["engine"]: one["loss"] for one in record["candidates"]}
    said |= {"wanted_bytes": record["requested"], "free_bytes": record["free"]}
    fields = {f"{names.DECISION}.{key}": value for key, value in said.items()}
    return {names.DECISION: record["reason"], **fields}


def _read_ahead(row: Mapping[str, Any]) -> Incident:
    """A file that was read into the page cache, which the host's memory holds."""
    said = _attributes(
        row, read_bytes=names.READ_BYTES, stopped="keepwarm.stopped", error=names.DETAIL
    )
    return Incident(
        names.READ_AHEAD, row["start_ns"], row["end_ns"], row["model"], "host", attributes=said
    )


def _note(row: Mapping[str, Any]) -> Incident:
    numbers = {f"keepwarm.{name}_bytes": value for name, value in row["numbers"].items()}
    said = {names.DETAIL: row["detail"] or None, **numbers}
    return Incident(row["kind"], row["ns"], row["ns"], row["model"], row["device"], said)


def _attributes(row: Mapping[str, Any], **fields: str) -> dict[str, Any]:
    """The fields of a row that are not zero, under the names they have on a trace."""
    return {name: row[field] for field, name in fields.items() if row.get(field)}
