"""Answers for clients: a grant, the state that `keepwarm ps` shows, and an engine's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from budget import actions as act
from budget.errors import InternalError
from budget.snapshot import record_to_wire, snapshot
from shim.keeper.catalog.catalog import Catalog
from shim.keeper.engines.running_engine import RunningEngine
from shim.keeper.shell.actions_out import Shell
from shim.keeper.shell.fault_counts import text_of
from shim.wire.messages import Log

LOOKS_BACK_NS: Final = 2_000_000_000
"""How long before a request's arrival evictions count that it may have waited for."""

Measured = Callable[[str, RunningEngine], Mapping[str, int | None] | None]


def grant_answer(shell: Shell, grant: act.Grant) -> dict[str, Any]:
    """The answer with a grant, for its client.

    Raises:
        InternalError: the answer cannot be made. The lease is over, because no client would end it.
    """
    try:
        running = shell.supervisor.now[grant.engine_id]
        answer: dict[str, Any] = {
            "lease": grant.request_id if grant.slot is not None else None,
            "engine": grant.engine_id,
            "generation": grant.generation,
            "slot": grant.slot,
            "cold": grant.cold,
            "arrived_ns": int(grant.arrived_at * 1e9),
            "granted_ns": int(grant.granted_at * 1e9),
            "endpoint": running.endpoint,
        }
        if grant.waited_for:
            answer["waited_for"] = grant.waited_for
        if grant.cold:
            _add_load(answer, shell, running)
        return answer
    except Exception as error:
        shell.faults.note("grant", f"telling the grant of {grant.request_id}", error)
        shell.withdraw(grant.request_id, grant.client_id)
        raise InternalError(f"the grant could not be reported: {text_of(error)}.") from error


def _add_load(answer: dict[str, Any], shell: Shell, running: RunningEngine) -> None:
    """Add what a request waited for to its answer: the load, its evictions and the decision."""
    arrived_ns = answer["arrived_ns"]
    seen = shell.history.between(arrived_ns - LOOKS_BACK_NS, answer["granted_ns"])
    answer["load"] = next(x for x in seen["loads"] if x["load_id"] == running.load.load_id)
    # Engines that left meanwhile for another one cost this request nothing.
    for_it = {f"{why} for {answer['engine']}" for why in ("evicted", "drained")}
    answer["evictions"] = [
        e for e in seen["evictions"] if e["end_ns"] >= arrived_ns and e["reason"] in for_it
    ]
    records = reversed(shell.core.state.records)
    decisions = (record_to_wire(r) for r in records if r.wanted == answer["engine"])
    answer["decision"] = next(decisions, None)


def status_of(shell: Shell, catalog: Catalog, measured: Measured) -> dict[str, Any]:
    """The books, the engines and the queue as `keepwarm ps` shows them, JSON-serialisable.

    Args:
        shell: the keeper's shell.
        catalog: of the configuration in force.
        measured: returns the last measured bytes of an engine.
    """
    state: dict[str, Any] = snapshot(shell.core, time.monotonic())
    for row in state["engines"]:
        running = shell.supervisor.now.get(row["id"])
        row["pid"] = running.report.pid if running and running.report else None
        row["load_fraction"] = running.load.fraction if running else None
        row["measured"] = measured(row["id"], running) if running and running.ready else None
        row["bytes"] = {d: n for d, n in row["bytes"].items() if d in catalog.limits}
        row["reported"] = dict(running.report.buffers) if running and running.report else None
        entry = catalog.engines.get(row["id"])
        row["file"] = str(entry.path) if entry else None
        row["quantization"] = entry.quantization if entry else None
        index = row["option_index"] or 0
        row["placement"] = entry.placements[index].reason if entry else ""
    state["devices"] = [d for d in state["devices"] if d["device"] in catalog.limits]
    state["asleep"] = shell.supervisor.sleepers.rows()
    state["unavailable"] = {n: e.to_wire() for n, e in catalog.errors.items()}
    return state


def log_of(shell: Shell, catalog: Catalog, asked: Log) -> dict[str, Any]:
    """The log of a model's engine after what was seen, and the error that ended the last generation.

    `generation` is None where no engine runs, and `death` where none ended by itself.
    """
    prepared = catalog.prepared.get(asked.model)
    if prepared is None:
        return {"generation": None, "seen": 0, "lines": [], "death": None}
    engine_id = prepared.engine_id
    running = shell.supervisor.now.get(engine_id)
    if running is None:
        residents = shell.core.state.residents
        last = residents[engine_id].generation if engine_id in residents else 0
        death = shell.supervisor.death_of(engine_id, last)
        return {"generation": None, "seen": 0, "lines": [], "death": death}
    seen = asked.seen if asked.generation == running.generation else 0
    count, lines = running.engine.log_since(seen)
    return {"generation": running.generation, "seen": count, "lines": list(lines), "death": None}
