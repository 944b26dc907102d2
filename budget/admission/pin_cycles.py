"""Requests that wait for pins in a circle: each pin ends with a client that waits itself, so none would.

A client that waits without a deadline is taken to hold its pins until it is answered, as are the other
connections of its program once it has waited `max_wait_s`. Another thread could end such a pin meanwhile; a
request that is to wait for that gives a deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from budget.admission.pins import is_kept_out, pins_of
from budget.admission.refusals import in_a_circle
from budget.admission.state import CoreState
from budget.books.queue import Waiting


def end_cycles(state: CoreState, now: float) -> None:
    """Deny requests until no circle is left: of each circle the one that closed it."""
    while (stuck := _stuck(state, _kept_out(state), now)) and _deny_one(state, stuck, now):
        pass


def _kept_out(state: CoreState) -> list[Waiting]:
    """The requests that wait for pins of others to end, however long that takes."""
    if not state.holders.called():
        return []
    waiting = [request for request in state.queue if request.deadline is None]
    return [r for r in waiting if is_kept_out(state, state.residents[r.engine_id], r)]


def _stuck(state: CoreState, waits: list[Waiting], now: float) -> list[Waiting]:
    """Those of `waits` that never end by themselves.

    Whichever would fit once the pins of all clients that do not wait have ended will be served, and its
    client's pins end then. What is left when that frees no other is stuck.
    """
    while waits:
        clients = {request.client_id for request in waits}
        programs = {p for request in waits for p in _program(state, request, now)}
        stuck = [
            request
            for request in waits
            if not state.fitting.eventually(state.residents[request.engine_id], clients, programs)
        ]
        if len(stuck) == len(waits):
            break
        waits = stuck
    return waits


def _program(state: CoreState, request: Waiting, now: float) -> list[str]:
    """The program whose other connections are taken to wait along with a request."""
    if request.owner is None or not request.aged(now, state.settings.max_wait_s):
        return []
    return [request.owner]


def _deny_one(state: CoreState, stuck: list[Waiting], now: float) -> bool:
    """Deny the newest request of a circle, at best one whose end lets another one be served."""
    blocked = _blocked(state, stuck, now)
    circles = [circle for request in stuck if (circle := _circle(request, blocked))]
    if not circles:
        return False

    def worth(circle: Sequence[Waiting]) -> tuple[bool, int]:
        others = [request for request in stuck if request is not circle[0]]
        return len(_stuck(state, others, now)) < len(others), circle[0].number

    circle = max(circles, key=worth)
    request = circle[0]
    waits = [
        {
            "client": waiting.client_id,
            "program": waiting.owner,
            "model": waiting.model,
            "pins": pins_of(state, sorted(blocked[waiting.request_id][after.request_id][1])),
        }
        for waiting, after in zip(circle, [*circle[1:], request], strict=True)
    ]
    shortfall = state.fitting.shortfall(state.residents[request.engine_id])
    state.end(request, in_a_circle(shortfall, waits), now)
    return True


Blocked = Mapping[str, Mapping[str, tuple[Waiting, set[str]]]]
"""By the id of a request: the requests whose clients hold pins in its way, and the models of these."""


def _blocked(state: CoreState, stuck: list[Waiting], now: float) -> Blocked:
    held = {
        r.request_id: state.holders.held_by({r.client_id}, _program(state, r, now)) for r in stuck
    }
    found = {}
    for request in stuck:
        engine = state.residents[request.engine_id]
        in_the_way = set(state.fitting.in_the_way(engine, request.client_id))
        found[request.request_id] = {
            other.request_id: (other, held[other.request_id] & in_the_way)
            for other in stuck
            if held[other.request_id] & in_the_way
        }
    return found


def _circle(request: Waiting, blocked: Blocked) -> list[Waiting]:
    """The shortest row of requests, each waiting for the next, that leads from one back to it."""
    rows, seen = deque([[request]]), set()
    while rows:
        row = rows.popleft()
        for after, _ in blocked[row[-1].request_id].values():
            if after is request:
                return row
            if after.request_id not in seen:
                seen.add(after.request_id)
                rows.append([*row, after])
    return []
