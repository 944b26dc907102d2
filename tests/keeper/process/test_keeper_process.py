"""The background keeper with real llama-server engines: shared, warm, and cleaned up after deaths."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from backends.machine.processes import command_line
from backends.machine.unix_http import blocking_request
from tests.keeper.support import World, world
from tests.processes import alive, wait_until

pytestmark = pytest.mark.real

ENDLESS = """
stream = s.stream("a", "Count for ever.", max_tokens=1_000_000_000, extra={"ignore_eos": True})
next(stream)
say(started=True)
for piece in stream:
    pass
"""
ONE_CHAT = """
r = s.chat("a", "Hello.", max_tokens=3)
say(cold=r.residency.cold, content=r.content, tokens=r.usage.completion_tokens)
"""


def is_generating(place: World, model: str) -> bool:
    """Whether the engine of a model works on a request now, by its own account."""
    words = command_line(place.engine(model)["pid"])
    _, slots = blocking_request(Path(words[words.index("--host") + 1]), "GET", "/slots")
    return any(slot["is_processing"] for slot in slots)


def test_a_second_program_finds_the_model_warm(keeper_world: World) -> None:
    """The keeper stays after the first client, and the second one does not load again."""
    first = keeper_world.client(ONE_CHAT)
    assert first.hear()["cold"] is True
    assert first.process.wait(60) == 0
    second = keeper_world.client(ONE_CHAT).hear()
    assert second["cold"] is False
    assert second["tokens"] == 3


def test_four_programs_at_once_start_one_keeper(keeper_world: World) -> None:
    """The first client starts it; the others wait for that start."""
    clients = [
        keeper_world.client(ONE_CHAT + 'say(pid=s.status()["keeper"]["pid"])') for _ in range(4)
    ]
    for client in clients:
        client.hear()
    assert len({client.hear()["pid"] for client in clients}) == 1
    assert len(keeper_world.engine_pids()) == 1


def test_sockets_are_private(keeper_world: World) -> None:
    """The keeper's and the engines' sockets are 0600, their folder 0700."""
    client = keeper_world.client(ONE_CHAT)
    client.hear()
    sockets = [p for p in keeper_world.runtime.iterdir() if p.is_socket()]
    assert len(sockets) == 2
    assert {stat.S_IMODE(p.stat().st_mode) for p in sockets} == {0o600}
    assert stat.S_IMODE(keeper_world.runtime.stat().st_mode) == 0o700


def test_a_killed_client_gives_its_lease_back_and_generation_stops(keeper_world: World) -> None:
    """Within a second nothing is leased and nothing generates; others are served."""
    client = keeper_world.client(ENDLESS)
    client.hear()
    assert keeper_world.engine("a")["leases"]
    assert is_generating(keeper_world, "a")
    client.kill()
    assert wait_until(lambda: not keeper_world.engine("a")["leases"])
    assert wait_until(lambda: not is_generating(keeper_world, "a"))
    assert keeper_world.client(ONE_CHAT).hear()["cold"] is False


def test_a_killed_engine_is_a_typed_error_and_the_next_request_works(keeper_world: World) -> None:
    """The stream raises EngineDied with the engine's last lines; the books balance afterwards."""
    code = """
stream = s.stream("a", "Count for ever.", max_tokens=1_000_000_000, extra={"ignore_eos": True})
next(stream)
say(started=True)
try:
    for piece in stream: pass
except shim.EngineDied as error:
    say(error=error.to_wire())
r = s.chat("a", "Hello again.", max_tokens=2)
say(cold=r.residency.cold, tokens=r.usage.completion_tokens)
"""
    client = keeper_world.client(code)
    client.hear()
    os.kill(keeper_world.engine("a")["pid"], signal.SIGKILL)
    error = client.hear()["error"]
    assert error["error"] == "EngineDied"
    assert error["facts"]["log_tail"], "the engine's last lines are quoted"
    assert client.hear() == {"cold": True, "tokens": 2}
    device = keeper_world.status()["devices"][0]
    assert device["reserved_bytes"] == sum(
        sum(row["bytes"].values()) for row in keeper_world.status()["engines"]
    )


def test_a_killed_keeper_takes_its_engines_with_it(keeper_world: World) -> None:
    """No engine is alive two seconds later, clients get a typed error, the next call works."""
    code = """
stream = s.stream("a", "Count for ever.", max_tokens=1_000_000_000, extra={"ignore_eos": True})
next(stream)
say(started=True)
try:
    for piece in stream: pass
except shim.KeepwarmError as error:
    say(error=type(error).__name__, fault=error.fault)
r = s.chat("a", "Hello again.", max_tokens=2)
say(cold=r.residency.cold, tokens=r.usage.completion_tokens)
"""
    client = keeper_world.client(code)
    client.hear()
    engines = keeper_world.engine_pids()
    assert engines
    os.kill(keeper_world.keeper_pid(), signal.SIGKILL)
    assert wait_until(lambda: not any(alive(pid) for pid in engines))
    assert client.hear() == {"error": "KeeperUnavailable", "fault": "outside"}
    assert client.hear() == {"cold": True, "tokens": 2}


def test_an_idle_keeper_leaves_and_takes_nothing_along(tiny_models: dict[str, Path]) -> None:
    """Started by a client, it ends when no client needed it for idle_exit."""
    with world() as place:
        place.configure({"a": {"path": str(tiny_models["classifier"])}}, keeper={"idle_exit": 0.5})
        place.hurry(process__daemon__IDLE_LOOK_S=0.05)
        client = place.client(ONE_CHAT + 'say(pid=s.status()["keeper"]["pid"])')
        client.hear()
        pid = client.hear()["pid"]
        client.process.wait(60)
        assert wait_until(lambda: not alive(pid))
        assert place.engine_pids() == []
        assert not (place.runtime / "keeper.sock").exists()


def test_reload_keeps_unchanged_models_warm(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """Only the model whose entry changed is loaded again."""
    client = keeper_world.client(
        """
for name in ("a", "b"):
    s.chat(name, "Hello.", max_tokens=1)
say(ready=True)
sys.stdin
while not os.path.exists("go"): time.sleep(0.02)
say(**s.reload())
say(a=s.chat("a", "Hi", max_tokens=1).residency.cold, b=s.chat("b", "Hi", max_tokens=1).residency.cold)
"""
    )
    client.hear()
    same = {
        "path": str(tiny_models["classifier"]),
        "context": 2048,
        "engine_args": ["--context-shift"],
    }
    other = {"path": str(tiny_models["producer"]), "context": 1024}
    keeper_world.configure({"a": same, "b": other})
    (keeper_world.root / "go").touch()
    answer = client.hear()
    assert answer == {
        "added": [],
        "removed": ["e"],
        "changed": ["b"],
        "reread": [],
        "unchanged": ["a"],
        "settings": [],
        "restart": [],
    }
    assert client.hear() == {"a": False, "b": True}


def test_a_program_from_before_a_reload_goes_on_after_a_crash_of_the_keeper(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """It starts the next keeper, with what was in force, and reads its file again."""
    older = keeper_world.client(
        """
def used(): say(tokens=s.chat("a", "Hi", max_tokens=1).usage.completion_tokens)
used()
while not os.path.exists("go"): time.sleep(0.02)
used()
say(contexts=[row.context for row in s.config.models.values()])
"""
    )
    assert older.hear() == {"tokens": 1}
    keeper_world.configure({"a": {"path": str(tiny_models["classifier"]), "context": 1024}})
    reloads = keeper_world.client("say(changed=s.reload()['changed'])")
    assert reloads.hear() == {"changed": ["a"]}
    pid = keeper_world.keeper_pid()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    (keeper_world.root / "go").touch()
    assert older.hear() == {"tokens": 1}
    assert older.hear() == {"contexts": [1024]}


def test_a_program_gets_the_model_that_its_file_describes(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """Also after an edit of one model, without a reload; the others stay warm."""
    keeper_world.client(ONE_CHAT + 's.load("b")\nsay()').hear()
    assert wait_until(lambda: keeper_world.engine("b")["state"] == "idle")
    pids = {name: keeper_world.engine(name)["pid"] for name in "ab"}
    keeper_world.configure(
        {
            "a": {"path": str(tiny_models["producer"]), "context": 512},
            "b": {"path": str(tiny_models["producer"]), "context": 2048},
        }
    )
    keeper_world.client(ONE_CHAT).hear()
    assert keeper_world.engine("a")["file"] == str(tiny_models["producer"])
    assert keeper_world.engine("a")["pid"] != pids["a"]
    assert keeper_world.engine("b")["pid"] == pids["b"]


def test_a_truncated_file_is_refused_and_others_are_served(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """A typed error names the file; once the file is whole, the same call works."""
    broken = keeper_world.root / "broken.gguf"
    whole = tiny_models["classifier"].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    keeper_world.configure(
        {"bad": {"path": str(broken)}, "b": {"path": str(tiny_models["producer"])}}
    )
    client = keeper_world.client(
        """
try:
    s.chat("bad", "Hello.")
except shim.BadModelFile as error:
    say(error=str(error), facts=error.facts)
say(tokens=s.chat("b", "Hello.", max_tokens=2).usage.completion_tokens)
while not os.path.exists("go"): time.sleep(0.02)
say(tokens=s.chat("bad", "Hello.", max_tokens=2).usage.completion_tokens)
"""
    )
    assert str(broken) in client.hear()["error"]
    assert client.hear() == {"tokens": 2}
    broken.write_bytes(whole)
    (keeper_world.root / "go").touch()
    assert client.hear() == {"tokens": 2}


def test_a_model_that_cannot_fit_is_refused_with_three_numbers(
    tiny_models: dict[str, Path],
) -> None:
    """Nothing is loaded or evicted for it, and a model that fits works."""
    with world() as place:
        place.configure(
            {
                "a": {"path": str(tiny_models["classifier"]), "context": 512},
                "huge": {
                    "path": str(tiny_models["classifier"]),
                    "context": 4096,
                    "n_batch": 4096,
                    "n_ubatch": 4096,
                },
            },
            budget={"limit": "60MB"},
        )
        client = place.client(
            """
s.chat("a", "Hello.", max_tokens=1)
try:
    s.chat("huge", "Hello.")
except shim.NeverFits as error:
    say(**error.facts)
say(cold=s.chat("a", "Hello.", max_tokens=1).residency.cold)
"""
        )
        facts = client.hear()
        assert facts["limit_bytes"] == 60_000_000
        assert facts["requested_bytes"] > facts["limit_bytes"]
        assert facts["reserved_bytes"] == 0
        assert client.hear() == {"cold": False}


def test_a_second_keeper_on_the_same_device_is_refused(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """Two keepers would book the same bytes twice."""
    keeper_world.client(ONE_CHAT).hear()
    with world() as other:
        other.configure({"a": {"path": str(tiny_models["classifier"])}})
        env_code = f"""
os.environ["KEEPWARM_LOCK_DIR"] = {str(keeper_world.root / "locks")!r}
try:
    s.chat("a", "Hello.")
except shim.ConfigError as error:
    say(error=str(error))
"""
        assert "booked by another keeper" in other.client(env_code).hear()["error"]


def test_a_run_traces_what_happened_in_the_keeper(keeper_world: World) -> None:
    """The client's trace holds the load that the keeper did, and the line in runs.jsonl."""
    client = keeper_world.client(
        """
from traces import RunTrace
with RunTrace(directory="traces") as run:
    s.chat("a", "Hello.", max_tokens=3)
say(trace=str(run.trace_path), problems=run.problems)
"""
    )
    said = client.hear()
    assert said["problems"] == []
    trace = keeper_world.root / said["trace"]
    events = json.loads(trace.read_text())
    rows = events["traceEvents"] if isinstance(events, dict) else events
    text = json.dumps(rows)
    assert "model_load" in text
    run = json.loads((trace.parent / "runs.jsonl").read_text())
    assert run["loads"] == 1
    assert run["requests"][0]["cold"] is True


def test_a_keeper_that_was_asked_to_stay_does_not_leave(tiny_models: dict[str, Path]) -> None:
    """`keepwarm keeper start` on one that started by itself makes it stay."""
    with world() as place:
        place.configure({"a": {"path": str(tiny_models["classifier"])}}, keeper={"idle_exit": 0.2})
        place.hurry(process__daemon__IDLE_LOOK_S=0.05)
        client = place.client('s.load("a")\nsay(**s._session.connections.ask("stay"))')
        pid = client.hear()["pid"]
        assert client.process.wait(60) == 0
        assert not wait_until(lambda: not alive(pid), 0.8)


def test_runs_of_event_loops_leave_no_descriptor_behind(keeper_world: World) -> None:
    """`asyncio.run` again and again, against a real engine: sockets and loops end with each run."""
    client = keeper_world.client(
        """
import asyncio, gc
def run(): return asyncio.run(s.achat("a", "Hello.", max_tokens=1)).usage.completion_tokens
tokens = run()
gc.collect()
before = len(os.listdir("/proc/self/fd"))
tokens += sum(run() for _ in range(30))
gc.collect()
loops = sum(isinstance(found, asyncio.AbstractEventLoop) for found in gc.get_objects())
s.close()
say(tokens=tokens, more=len(os.listdir("/proc/self/fd")) - before, loops=loops)
"""
    )
    answer = client.hear()
    assert answer["tokens"] == 31
    assert answer["more"] <= 0
    assert answer["loops"] == 0


def test_a_client_without_descriptors_gets_that_error(keeper_world: World) -> None:
    """Not that the keeper or the engine is gone; what runs goes on, and the next call works."""
    client = keeper_world.client(
        """
import resource
stream = s.stream("a", "Hello.", max_tokens=20)
next(stream)
fill = [os.dup(0) for _ in range(40)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
while True:
    try: fill.append(os.dup(0))
    except OSError: break
for closed in (0, 1):
    for _ in range(closed): os.close(fill.pop())
    try: s.chat("b", "Hello.", max_tokens=1)
    except shim.QueueFull as error: say(closed=closed, error=str(error))
rest = sum(1 for _ in stream)
os.close(fill.pop())
say(rest=rest > 0, tokens=s.chat("b", "Hello.", max_tokens=2).usage.completion_tokens)
"""
    )
    for closed in (0, 1):
        answer = client.hear()
        assert answer["closed"] == closed
        assert "Too many open files" in answer["error"]
    assert client.hear() == {"rest": True, "tokens": 2}
    assert keeper_world.engine("b")["leases"] == []
