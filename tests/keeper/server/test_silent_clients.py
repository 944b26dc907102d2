"""A client that holds a lease and does nothing with it cannot keep others waiting for ever."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from shim.keeper.server import silent_clients
from tests.keeper.server.test_server import Files, lease, serving
from tests.keeper.support import world
from tests.processes import wait_until
from tests.races.support import run


def test_a_silent_client_loses_its_lease_and_one_that_answers_keeps_it(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are asked when another request waits; only the silent one loses its lease, and gets a notice."""
    monkeypatch.setattr(silent_clients, "ANSWER_LIMIT_S", 0.0)

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            keeper, look = at.it.keeper, at.server._silent.look
            monkeypatch.setattr(keeper.liveness, "idle_since", lambda _engine: -1e9)
            holder, waiting = await at.visit(), await at.visit()
            held = (await holder.ask("lease", model="a"))["ok"]["lease"]
            await look()
            assert (await holder.ask("status"))["ok"], "no request waits, so nothing is asked"
            waiting.say(lease(model="b"))
            await waiting.ask("status")
            await look()
            assert await holder.hear() == {"notice": "ping", "lease": held}
            holder.say(json.dumps({"op": "pong", "lease": held}).encode())
            await holder.ask("status")
            await look()
            assert held in keeper.shell.core.state.leases
            at.server._silent._questions.clear()
            await look()
            assert await holder.hear() == {"notice": "ping", "lease": held}
            await look()
            lost = await holder.hear()
            assert lost["notice"] == "revoked"
            assert lost["error"]["error"] == "EngineTimeout"
            while (answer := await waiting.hear()).get("id") != 1:
                pass
            waiting.say(json.dumps({"op": "end", "lease": answer["ok"]["lease"]}).encode())
            holder.say(json.dumps({"op": "end", "lease": held}).encode())
            assert (await holder.ask("status"))["ok"]["engines"]
            await waiting.ask("status")

    run(scenario)


QUICK = {"server__server__BEAT_S": 0.1, "engines__liveness__LOOK_EVERY_S": 0.1}
"""A keeper that looks at clients and engines far more often sees sooner that they are silent."""

MANY = """
import threading
def ask():
    s.chat("a", "Count.", max_tokens=200, extra={"ignore_eos": True})
for _ in range(6):
    threading.Thread(target=ask, daemon=True).start()
import time
while not any(row["leases"] for row in s.status()["engines"]): time.sleep(0.01)
say(started=True)
time.sleep(60)
"""


@pytest.mark.real
def test_a_stopped_program_with_many_waiting_calls_loses_them_all_at_once(
    tiny_models: dict[str, Path],
) -> None:
    """Each of its calls would otherwise be granted in turn, and wait out its own patience."""
    with world() as place:
        place.configure(
            {"a": {"path": str(tiny_models["classifier"]), "context": 512}},
            budget={"reserve": 0},
            keeper={"lease_timeout": 0.5},
        )
        place.hurry(**QUICK)
        holder = place.client(MANY)
        assert holder.hear() == {"started": True}
        os.kill(holder.process.pid, signal.SIGSTOP)
        other = place.client('say(content=bool(s.chat("a", "Hello.", max_tokens=2).content))')
        assert "content" in other.hear()
        holder.kill()


HOLDS_A_STREAM = """
stream = s.stream("a", "Count.", max_tokens=50)
next(stream)
use = lambda: list(stream)
"""
HOLDS_A_CLIENT = """
http = s.http("a").__enter__()
use = lambda: http.get("/health").status_code
assert use() == 200
"""
USES = """
say(started=True)
sys.stdin.readline()
for _ in range(2):
    try:
        say(used=bool(use()))
    except shim.KeepwarmError as error:
        say(error=type(error).__name__)
"""


@pytest.mark.real
@pytest.mark.parametrize("holds", [HOLDS_A_STREAM, HOLDS_A_CLIENT], ids=["stream", "client"])
def test_a_stopped_program_gives_its_bytes_up_to_others_that_wait(
    tiny_models: dict[str, Path], holds: str
) -> None:
    """Its engine works on nothing; on SIGCONT the program hears what happened, as often as it asks."""
    with world() as place:
        place.configure(
            {
                "a": {"path": str(tiny_models["classifier"]), "context": 512},
                "b": {"path": str(tiny_models["producer"]), "context": 512},
            },
            budget={"limit": "30MB", "reserve": 0},
            keeper={"lease_timeout": 0.5},
        )
        place.hurry(**QUICK)
        holder = place.client(holds + USES)
        assert holder.hear() == {"started": True}
        os.kill(holder.process.pid, signal.SIGSTOP)
        other = place.client('say(content=bool(s.chat("b", "Hello.", max_tokens=2).content))')
        assert "content" in other.hear()
        assert wait_until(lambda: not place.engine("a")["leases"])
        holder.go_on()
        assert holder.hear() == {"error": "EngineTimeout"}
        assert holder.hear() == (
            {"error": "EngineTimeout"} if holds is HOLDS_A_CLIENT else {"used": False}
        )
        holder.kill()
