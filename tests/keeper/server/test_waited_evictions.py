"""What the keeper tells a request that it waited for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from shim.keeper.server.status import _add_load


def test_evictions_for_another_engine_are_not_those_that_a_request_waited_for() -> None:
    """Engines that left for it, at once or after their leases; not before it came."""
    left = [
        ("a", "evicted for b-1", 5),
        ("c", "evicted for d-1", 5),
        ("e", "drained for b-1", 6),
        ("f", "unused for 60 s", 6),
        ("g", "evicted for b-1", 2),
    ]
    seen = {
        "loads": [{"load_id": "b-1/1"}],
        "evictions": [{"model": m, "reason": why, "end_ns": end} for m, why, end in left],
    }
    state = SimpleNamespace(records=[])
    shell = SimpleNamespace(
        history=SimpleNamespace(between=lambda *_: seen), core=SimpleNamespace(state=state)
    )
    running = SimpleNamespace(load=SimpleNamespace(load_id="b-1/1"))
    answer: dict[str, Any] = {"engine": "b-1", "arrived_ns": 3, "granted_ns": 9}
    _add_load(answer, cast("Any", shell), cast("Any", running))
    assert [one["model"] for one in answer["evictions"]] == ["a", "e"]
