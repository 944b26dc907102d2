"""What `keepwarm ps` sees of the core: everything, as JSON, and without touching it."""

from __future__ import annotations

import json
from typing import Any

from budget import events as ev
from budget.snapshot import DECISIONS_SHOWN, record_to_wire, snapshot
from tests.budget.machine import Shell, engine, model, shell_of


def seen(shell: Shell) -> dict[str, Any]:
    """The snapshot as it arrives on the other side of a socket; NaN and Infinity are refused."""
    before = repr(list(shell.core.state.residents))
    data = json.loads(json.dumps(snapshot(shell.core, shell.now), allow_nan=False))
    assert repr(list(shell.core.state.residents)) == before
    assert isinstance(data, dict)
    return data


def row(data: dict[str, Any], engine_id: str) -> dict[str, Any]:
    """One engine's row."""
    found = [r for r in data["engines"] if r["id"] == engine_id]
    assert len(found) == 1
    return dict(found[0])


def test_the_books_of_every_device_are_shown() -> None:
    """The same figures as the ledger's, leaving and over-limit among them."""
    shell = shell_of(
        {"gpu": 100, "host": 50},
        [engine("p", 30), engine("a", 20), engine("b", 60)],
        [model("p", pinned=True)],
    )
    shell.settle()
    shell.use("a")
    assert seen(shell)["devices"][0] == {
        "device": "gpu",
        "limit_bytes": 100,
        "ceiling_bytes": 100,
        "available_bytes": None,
        "protected_bytes": 30,
        "evictable_bytes": 20,
        "leaving_bytes": 0,
        "reserved_bytes": 50,
        "free_bytes": 50,
        "over_limit": False,
        "low_memory": False,
    }
    shell.send(ev.DeviceMeasured("gpu", 40))
    device = seen(shell)["devices"][0]
    assert (device["ceiling_bytes"], device["leaving_bytes"], device["over_limit"]) == (
        40,
        20,
        True,
    )


def test_an_engines_row_has_its_state_and_its_leases() -> None:
    """The client of each slot, since when, and under which of the engine's names."""
    names = [model("x", "a", pinned=True), model("y", "a", keep_alive_s=9.0)]
    shell = shell_of(100, [engine("a", 40, slots=2), engine("z", 10)], names)
    shell.settle()
    shell.advance(2.0)
    request = shell.serve("y", "me")
    shell.advance(3.0)
    found = row(seen(shell), "a")
    assert found["leases"] == [
        {
            "request": request,
            "client": "me",
            "model": "y",
            "slot": 0,
            "priority": 0,
            "since_s": 3.0,
        }
    ]
    assert (found["models"], found["pinned"], found["pinned_by"]) == (["x", "y"], True, ["x"])
    assert (found["state"], found["bytes"], found["loaded_s"]) == ("leased", {"gpu": 40}, 5.0)
    assert (found["generation"], found["option_index"], found["idle_s"]) == (1, 0, None)
    absent = row(seen(shell), "z")
    assert (absent["state"], absent["bytes"], absent["loaded_s"]) == ("absent", {}, None)
    assert absent["option_index"] is None


def test_the_time_left_of_a_keep_alive_counts_down_only_while_it_counts() -> None:
    """None while leased, pinned, not used yet, or without a time-out."""
    shell = shell_of(100, [engine("a", 40)], [model("a", keep_alive_s=9.0)])
    shell.ask("a", want="load")
    shell.settle()
    assert row(seen(shell), "a")["keep_alive_left_s"] is None
    lease = shell.serve("a")
    assert row(seen(shell), "a")["keep_alive_left_s"] is None
    shell.end(lease)
    shell.advance(4.0)
    found = row(seen(shell), "a")
    assert (found["keep_alive_s"], found["idle_s"], found["keep_alive_left_s"]) == (9.0, 4.0, 5.0)


def test_a_failed_engine_shows_its_error_and_when_it_is_tried_again() -> None:
    """The reader sees why and when."""
    shell = shell_of(100, [engine("p", 40)], [model("p", pinned=True)])
    shell.fail_load("p")
    found = row(seen(shell), "p")
    assert (found["state"], found["failures"], found["retry_in_s"]) == ("failed", 1, 0.5)
    assert found["last_error"]["message"] == "scripted"


def test_the_queue_is_in_the_order_of_service_with_reasons() -> None:
    """Aged first, then priority, then arrival; and what each waits for."""
    shell = shell_of(100, [engine("a", 80), engine("c", 80)], max_wait_s=10.0)
    shell.serve("a")
    aged = shell.ask("c")
    shell.advance(10.0)
    plain, urgent = shell.ask("a"), shell.ask("c", priority=2, deadline=15.0)
    queue = seen(shell)["queue"]
    assert [r["request"] for r in queue] == [aged, urgent, plain]
    assert queue[0]["waited_s"] == 10.0
    assert "max_wait" in queue[0]["rank_reason"]
    assert queue[1]["rank_reason"].startswith("priority 2")
    assert queue[1]["deadline_in_s"] == 5.0
    assert queue[2]["rank_reason"] == "by arrival"
    assert [r["waits_for"] for r in queue] == [
        "bytes of gpu held by a (in use)",
        "bytes of gpu held by a (in use)",
        "its next load: it drains for c",
    ]


def test_what_a_request_waits_for_is_said_in_every_state() -> None:
    """A load, an eviction, the end of its own process, bytes, a slot."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])

    def reasons() -> dict[str, str]:
        return {r["request"]: r["waits_for"] for r in seen(shell)["queue"]}

    first = shell.ask("a")
    other = shell.ask("b")
    assert reasons() == {first: "its load", other: "bytes of gpu held by a"}
    shell.settle()
    behind = shell.ask("a")
    assert reasons()[behind] == "a slot of a"
    shell.end(first)
    shell.end(behind)
    late = shell.ask("a")
    assert reasons() == {other: "bytes of gpu held by a (leaving)", late: "the end of its process"}


def test_decisions_are_the_latest_first_and_bounded() -> None:
    """Each with candidates, losses, bytes and victims."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    for turn in range(2 * DECISIONS_SHOWN):
        shell.use("ab"[turn % 2])
        shell.advance(1.0)
    decisions = seen(shell)["decisions"]
    assert len(decisions) == DECISIONS_SHOWN
    numbers = [d["number"] for d in decisions]
    assert numbers == sorted(numbers, reverse=True)
    newest = decisions[0]
    assert newest == record_to_wire(shell.core.state.records[-1])
    assert (newest["wanted"], newest["victims"]) == ("b", ["a"])
    assert newest["requested"] == {"gpu": 80}
    assert newest["free"] == {"gpu": 20}
    assert newest["candidates"][0]["bytes"] == {"gpu": 80}


def test_plans_are_shown_with_what_is_there_of_them() -> None:
    """By client: the next uses under their models' names, and how near each is."""
    names = [model("one", "a"), model("two", "a"), model("b"), model("c")]
    shell = shell_of(
        100, [engine("a", 60), engine("b", 30), engine("c", 90)], names, prefetch="load"
    )
    lease = shell.serve("one")
    shell.declare("b", "c", "two", client="me")
    shell.settle()
    data = seen(shell)
    assert data["declared"] == [
        {
            "plan": "me",
            "client": "me",
            "left": 3,
            "next": [
                {"engine": "b", "model": "b", "state": "idle"},
                {"engine": "c", "model": "c", "state": "staging"},
                {"engine": "a", "model": "one+two", "state": "leased"},
            ],
        }
    ]
    assert data["prefetch"]["loaded"] == ["b"]
    assert (data["prefetch"]["staging"], data["prefetch"]["staged"]) == ("c", [])
    shell.finish_staging()
    data = seen(shell)
    assert data["declared"][0]["next"][1]["state"] == "staged"
    assert data["prefetch"]["staged"] == ["c"]
    assert not data["prefetch"]["cores_are_busy"]
    shell.end(lease)


def test_pins_are_shown_with_what_keeps_them() -> None:
    """The configuration, clients, a pin that persists, and requests that are to pin."""
    names = [model("x", "a", pinned=True), model("y", "a")]
    shell = shell_of(100, [engine("a", 40), engine("b", 50)], names)
    shell.settle()
    shell.serve_pin("y", "me")
    shell.serve_pin("y", "shell", persist=True)
    shell.ask("b", "her", want="pin")
    nothing = {
        "configured": False, "persistent": False, "clients": [], "waiting": [], "programs": {},
    }  # fmt: skip
    data = seen(shell)
    assert row(data, "a")["pins"] == [
        {**nothing, "model": "x", "configured": True},
        {**nothing, "model": "y", "persistent": True, "clients": ["me"]},
    ]
    assert row(data, "b")["pins"] == [{**nothing, "model": "b", "waiting": ["her"]}]


def test_what_keeps_a_request_out_is_shown() -> None:
    """The pins of other clients that have to end."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80), engine("c", 80)])
    shell.serve_pin("a", "short")
    shell.ask("b", "other")
    shell.ask("c", "other", want="pin")
    assert [r["waits_for"] for r in seen(shell)["queue"]] == ["other clients' pins to end: a"] * 2
