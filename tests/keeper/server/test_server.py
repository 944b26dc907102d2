"""The keeper's socket: whatever one client sends or leaves undone, the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import random
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from shim.keeper.server import clients as clients_module
from shim.keeper.server import connection as connection_module
from shim.keeper.server import listener as listener_module
from shim.keeper.server.server import Server
from shim.wire.json_lines import VERSION
from shim.wire.messages import OPS, Asked
from tests.races.support import LIMIT_S, Race, race, run

Files = dict[str, Path]


class Visitor:
    """A client that says what no client of ours would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: bytes) -> None:
        """Send a line as it is."""
        self.writer.write(line + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The next line from the keeper."""
        line = await asyncio.wait_for(self.reader.readline(), LIMIT_S)
        assert line, "the keeper closed the connection"
        return dict(json.loads(line))

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """A well-formed op and its answer."""
        self.say(json.dumps({"op": op, "id": 7, **fields}).encode())
        while (message := await self.hear()).get("id") != 7:
            pass
        return message

    async def is_served(self) -> bool:
        """Whether a lease is granted and given back."""
        answer = (await self.ask("lease", model="a"))["ok"]
        self.say(json.dumps({"op": "end", "lease": answer["lease"]}).encode())
        return "leases" in (await self.ask("status"))["ok"]["engines"][0]


class OpenServer:
    """A keeper over scripted engines behind a real socket."""

    def __init__(self, it: Race, server: Server, path: Path) -> None:
        self.it, self.server, self.path = it, server, path
        self.visitors: list[Visitor] = []

    async def visit(self) -> Visitor:
        """One more connection."""
        visitor = Visitor(*await asyncio.open_unix_connection(str(self.path), limit=1 << 25))
        self.visitors.append(visitor)
        return visitor


@contextlib.asynccontextmanager
async def serving(files: Files, runtime: Path, **budget: Any) -> AsyncIterator[OpenServer]:
    """A listening keeper; at the end its books balance and no lease is left."""
    async with race(files, **budget) as it:
        server = Server(it.keeper, asyncio.Event())
        server.listen(runtime / "keeper.sock")
        made = OpenServer(it, server, runtime / "keeper.sock")
        try:
            yield made
        finally:
            for visitor in made.visitors:
                visitor.writer.transport.abort()
            server.close()
            for _ in range(3):
                await asyncio.sleep(0)
            assert it.keeper.shell.core.state.leases == {}
            assert len(it.keeper.shell.core.state.queue) == 0


def lease(**fields: Any) -> bytes:
    """A lease op with fields as they are given."""
    return json.dumps({"op": "lease", "id": 1, "model": "a", **fields}).encode()


MALFORMED = {
    "an id that is no number": b'{"op":"lease","id":NaN,"model":"a"}',
    "an id with half a surrogate": b'{"op":"lease","id":"\\ud800","model":"a"}',
    "an id that is an object": b'{"op":"lease","id":{},"model":"a"}',
    "a huge id": b'{"op":"lease","id":1e308,"model":"a"}',
    "priority as text": lease(priority="high"),
    "priority as list": lease(priority=[1]),
    "priority as object": lease(priority={}),
    "priority as float": lease(priority=1.5),
    "a priority beyond every number": b'{"op":"lease","id":1,"model":"a","priority":'
    + b"9" * 400
    + b"}",
    "deadline NaN": b'{"op":"lease","id":1,"model":"a","deadline_s":NaN}',
    "deadline infinite": b'{"op":"lease","id":1,"model":"a","deadline_s":Infinity}',
    "deadline 1e308": lease(deadline_s=1e308),
    "deadline as text": lease(deadline_s="soon"),
    "a want that does not exist": lease(want="own"),
    "a model that is no text": lease(model=7),
    "half a surrogate in the model": b'{"op":"lease","id":1,"model":"\\udfff"}',
    "a field that no op has": lease(preemptable=True),
    "a plan that is a list": lease(plan=["x"]),
    "no op": b'{"id":1}',
    "an op that does not exist": b'{"op":"drop tables","id":1}',
    "an op that is an object": b'{"op":{},"id":1}',
    "no object": b"[1, 2]",
    "null": b"null",
    "nothing": b"",
    "no JSON": b"\xff\x00 nonsense",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"op":' * 50_000,
    "a deep configuration": b'{"op":"reload","id":1,"config":'
    + b'{"a":' * 3000
    + b"1"
    + b"}" * 3001,
    "a configuration with infinite numbers": b'{"op":"reload","id":1,"config":{"budget":{"limit":1e999}}}',
    "tokens below zero": b'{"op":"yielded","id":1,"lease":"r1","prompt_tokens":-1,"tokens":0}',
    "no tokens": b'{"op":"yielded","id":1,"lease":"r1"}',
    "a hint without a kind": b'{"op":"hint","id":1,"model":"a"}',
    "a span of time that is text": b'{"op":"history","id":1,"since_ns":"0","until_ns":1}',
    "an engine without generation": b'{"op":"diagnose","id":1,"engine":"a"}',
    "models that are no list": b'{"op":"plan","id":1,"models":"a"}',
    "spent that is text": b'{"op":"end","lease":"r1","spent":"all"}',
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_refused_before_the_core_sees_it(
    tiny_models: Files, runtime_dir: Path, line: bytes
) -> None:
    """It is answered with InvalidRequest; its own connection and every other one go on."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            visitor, other = await at.visit(), await at.visit()
            visitor.say(line)
            answer = await visitor.hear()
            assert answer["error"]["error"] == "InvalidRequest"
            assert len(at.it.keeper.shell.core.state.queue) == 0
            assert await visitor.is_served()
            assert await other.is_served()

    run(scenario)


def _anything(chance: random.Random, depth: int = 0) -> Any:
    plain = [
        None, True, -1, 0, 1, 2**63, 1.5, float("nan"), float("inf"), -1e308, "", "a", "b", "lease",
        "r1", "r2", "\ud800", "x" * 1000, "../../etc",
    ]  # fmt: skip
    kind = chance.random()
    if depth < 3 and kind < 0.1:
        return [_anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    if depth < 3 and kind < 0.2:
        return {str(chance.choice(plain)): _anything(chance, depth + 1) for _ in range(3)}
    return chance.choice(plain)


def _message(chance: random.Random, ops: list[str]) -> bytes:
    fields = [
        "model", "want", "priority", "deadline_s", "plan", "preemptible", "persist", "lease", "spent",
        "prompt_tokens", "tokens", "engine", "generation", "kind", "models", "since_ns", "until_ns",
        "config", "version", "label", "file",
    ]  # fmt: skip
    answer: dict[str, Any] = {
        "op": chance.choice(ops),
        "id": chance.choice([1, 2, 3, _anything(chance)]),
    }
    for name in chance.sample(fields, chance.randrange(5)):
        answer[name] = _anything(chance)
    if chance.random() < 0.4:
        answer["model"] = chance.choice(["a", "b"])
    line = json.dumps(answer).encode()
    return line[: chance.randrange(len(line))] if chance.random() < 0.1 else line


@pytest.mark.parametrize("seed", [1, 2])
def test_random_messages_are_answered_or_refused_and_others_are_served(
    tiny_models: Files, runtime_dir: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """3,000 messages of random ops and types, on connections that come and go: no InternalError."""

    async def scenario() -> None:
        chance = random.Random(seed)
        # Neither the test's keeper nor its models are to be ended.
        ops = sorted(OPS - {"stop", "reload"})
        answers: list[dict[str, Any]] = []
        async with serving(tiny_models, runtime_dir, max_wait=0) as at:
            good = await at.visit()
            for _ in range(15):
                bad = await at.visit()
                for _ in range(200):
                    bad.say(_message(chance, ops))
                bad.say(b'{"op":"hello","id":99,"version":%d}' % VERSION)
                while True:
                    answer = await bad.hear()
                    answers.append(answer)
                    if answer.get("id") == 99:
                        break
                bad.writer.close()
                assert await good.is_served()
        assert answers
        kinds = {a["error"]["error"] for a in answers if "error" in a}
        assert "InternalError" not in kinds
        assert "InvalidRequest" in kinds

    run(scenario)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_lease_of_another_client_cannot_be_ended_or_yielded(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """Its holder keeps it."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            holder, thief = await at.visit(), await at.visit()
            held = (await holder.ask("lease", model="a"))["ok"]["lease"]
            thief.say(json.dumps({"op": "end", "lease": held}).encode())
            answer = await thief.ask("yielded", lease=held, prompt_tokens=1, tokens=1)
            assert answer["error"]["error"] in ("InvalidRequest", "Cancelled")
            assert list(at.it.keeper.shell.core.state.leases) == [held]

    run(scenario)


def test_no_lease_is_granted_once_the_keeper_was_asked_to_stop(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """Its engine would end at once; the client asks the next keeper when its connection closes."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            first = await at.visit()
            first.say(b'{"op":"stop","id":1}\n{"op":"lease","id":2,"model":"a"}')
            assert (await first.hear())["ok"]["stopping"]
            assert (await first.ask("status"))["ok"]["queue"] == []
            assert at.server.clients.stop.is_set()
            assert at.it.keeper.shell.core.state.leases == {}

    run(scenario)


def test_a_connection_is_told_an_engines_endpoint_once(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """The second lease leaves it out, until the engine has started anew; another connection gets it."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as made:
            first, second = await made.visit(), await made.visit()

            async def told(visitor: Visitor) -> bool:
                answer = (await visitor.ask("lease", model="a"))["ok"]
                visitor.say(json.dumps({"op": "end", "lease": answer["lease"]}).encode())
                return "endpoint" in answer

            assert [await told(first), await told(first), await told(second)] == [True, False, True]
            assert (await first.ask("hint", kind="unload", model="a"))["ok"]["gone"]
            assert [await told(first), await told(first)] == [True, False]

    run(scenario)


def test_a_thousand_idle_connections_leave_room_for_others(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit the one that was idle for longest makes room; those beyond the kept ones age away."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            limit = listener_module.connection_limit(64)
            count = min(1000, limit - 8)
            for _ in range(count):
                await at.visit()
            other = await at.visit()
            assert await other.is_served()
            monkeypatch.setattr(listener_module, "connection_limit", lambda _others: count)
            assert await (await at.visit()).is_served()
            monkeypatch.setattr(clients_module, "IDLE_AGE_S", -1.0)
            at.server.clients.beat()
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(at.server.clients.by_id) == clients_module.IDLE_KEPT

    run(scenario)


def test_a_client_beyond_the_limit_is_refused_with_the_number(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every connection holds something, the next one hears why it is closed."""

    async def scenario() -> None:
        monkeypatch.setattr(listener_module, "connection_limit", lambda _others: 1)
        async with serving(tiny_models, runtime_dir) as at:
            holder = await at.visit()
            assert "ok" in await holder.ask("lease", model="a")
            refused = await at.visit()
            answer = await refused.hear()
            assert answer["notice"] == "refused"
            assert answer["error"]["error"] == "QueueFull"
            assert answer["error"]["facts"]["limit"] == 1
            assert await refused.reader.read() == b""

    run(scenario)


def test_accepting_pauses_when_the_machine_has_no_descriptors_and_goes_on(
    tiny_models: Files,
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line in the log, not one for each connection of the backlog."""
    real_accept = socket.socket.accept
    failures = iter(range(1))

    def accept(self: socket.socket) -> Any:
        if next(failures, None) is not None:
            raise OSError(23, "Too many open files in system")
        return real_accept(self)

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            monkeypatch.setattr(socket.socket, "accept", accept)
            monkeypatch.setattr(listener_module, "PAUSE_S", 0.0)
            assert await (await at.visit()).is_served()

    run(scenario)
    assert sum("no connection is accepted" in r.message for r in caplog.records) == 1


def test_a_client_that_floods_and_never_reads_costs_a_bounded_amount(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """It is not listened to while its answers wait; others are served in between."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            flood, other = await at.visit(), await at.visit()
            cast("asyncio.Transport", flood.writer.transport).pause_reading()
            for _ in range(20_000):
                flood.say(b'{"op":"status","id":1}')
            assert await other.is_served()
            assert await other.is_served()
            unsent = [
                client._transport.get_write_buffer_size()
                for client in at.server.clients.by_id.values()
                if client._transport is not None
            ]
            assert max(unsent) < 1 << 20

    run(scenario)


def test_a_client_that_waits_hears_that_the_keeper_is_alive(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence then means that the keeper does not respond; a client without a question hears nothing."""
    monkeypatch.setattr(connection_module, "ALIVE_AFTER_S", 0.0)

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            at.it.close_load("a")
            waiting, silent = await at.visit(), await at.visit()
            waiting.say(lease())
            await silent.ask("status")
            at.server.clients.beat()
            assert await waiting.hear() == {"notice": "alive"}
            at.it.loads["a"].set()
            assert (await waiting.hear())["id"] == 1
            at.server.clients.beat()
            assert (await silent.ask("status"))["id"] == 7

    run(scenario)


def test_an_oversized_line_costs_only_its_own_connection(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped at the limit, whatever would have come after it."""
    monkeypatch.setattr(connection_module, "MAX_LINE_BYTES", 1 << 16)

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            bad, other = await at.visit(), await at.visit()
            bad.writer.write(b"x" * (1 << 20))
            # What the keeper had not read yet when it closed is a reset here.
            with contextlib.suppress(ConnectionError):
                assert await bad.reader.read() == b""
            assert len(at.server.clients.by_id) == 1
            assert await other.is_served()

    run(scenario)


def test_what_is_not_a_socket_is_not_removed_for_one(tiny_models: Files, runtime_dir: Path) -> None:
    """A file in the socket's place is not keepwarm's to delete."""
    (runtime_dir / "keeper.sock").write_text("mine")

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir):
            pytest.fail("it listens")

    with pytest.raises(Exception, match="is not a keeper's socket"):
        run(scenario)
    assert (runtime_dir / "keeper.sock").read_text() == "mine"


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("stop", {}),
        ("stay", {}),
        ("reload", {"config": {}}),
        ("kv_clear", {}),
        ("hint", {"kind": "unload", "model": "a"}),
    ],
)
def test_an_order_is_not_carried_out_once_its_client_has_given_up(
    tiny_models: Files, runtime_dir: Path, op: str, fields: dict[str, Any]
) -> None:
    """The keeper was stopped when it came, and the command said that the keeper does not respond."""
    done: list[str] = []

    def carry_out(_client: Any, asked: Any) -> dict[str, Any]:
        done.append(asked.op)
        return {}

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as it:
            with pytest.MonkeyPatch.context() as patch:
                for kind in clients_module.ORDERS:
                    patch.setitem(clients_module._OPS, kind, carry_out)
                line = json.dumps({"op": op, "id": 1, **fields}).encode() + b"\n"
                with socket.socket(socket.AF_UNIX) as hasty:
                    hasty.connect(str(it.path))
                    hasty.sendall(line)
                visitor = await it.visit()
                assert await visitor.is_served()
                assert done == []
                assert (await visitor.ask(op, **fields))["ok"] == {}
                assert done == [op]

    run(scenario)


@pytest.mark.parametrize("work", ["_read_config", "_read_models"])
def test_a_big_configuration_is_worked_on_beside_the_loop(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Others are served while a reload is read, and while models of another project are."""
    begun, served = threading.Event(), threading.Event()
    real = getattr(clients_module, work)

    def slow(*args: Any) -> Any:
        begun.set()
        assert served.wait(LIMIT_S)
        return real(*args)

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            big, other = await at.visit(), await at.visit()
            monkeypatch.setattr(clients_module, work, slow)
            mapping = at.it.keeper.config.to_mapping()
            ops: dict[str, dict[str, Any]] = {
                "_read_config": {"op": "reload", "config": mapping},
                "_read_models": {"op": "take_in", "entries": mapping["models"], "read_at": 0.0},
            }
            big.say(json.dumps({"id": 7, **ops[work]}).encode())
            assert await asyncio.to_thread(begun.wait, LIMIT_S)
            assert await other.is_served()
            served.set()
            assert "ok" in await big.hear()

    run(scenario)


def test_waiting_leases_that_are_dropped_with_their_connection_leave_nothing_in_the_log(
    tiny_models: Files, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether or not the keeper had begun to wait for them: their errors are no one's to hear."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            at.it.close_load("a")
            for _ in range(3):
                visitor = await at.visit()
                await visitor.ask("hello", version=VERSION)
                (client,) = at.server.clients.by_id.values()
                client.data_received(b"\n".join([lease(), b'{"op":"status","id":2}'] * 100) + b"\n")
                assert client.waits
                client.connection_lost(None)
                await asyncio.sleep(0)
            gc.collect()

    run(scenario)
    gc.collect()
    assert [r.getMessage() for r in caplog.records if "never retrieved" in r.getMessage()] == []


def test_an_engines_log_is_told_from_where_it_was_read(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """Whole for another generation, empty without an engine, with the error that ended the last one."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            visitor = await at.visit()
            nothing: dict[str, Any] = {"generation": None, "seen": 0, "lines": [], "death": None}
            assert (await visitor.ask("log", model="a"))["ok"] == nothing
            assert await visitor.is_served()
            told = (await visitor.ask("log", model="a"))["ok"]
            line = ["scripted: last line"]
            assert told == {"generation": 1, "seen": 1, "lines": line, "death": None}
            again = await visitor.ask("log", model="a", generation=1, seen=1)
            assert again["ok"] == {**told, "lines": []}
            assert (await visitor.ask("log", model="a", generation=0, seen=1))["ok"] == told
            assert (await visitor.ask("log", model="x"))["error"]["error"] == "UnknownModel"
            at.it.engine("a").kill()
            while (dead := (await visitor.ask("log", model="a"))["ok"])["death"] is None:
                pass
            assert dead["death"]["error"] == "EngineDied"

    run(scenario)


def test_other_messages_are_another_version_of_the_protocol() -> None:
    """A keeper that went on running took a new client's message for a mistake of the caller's.

    With a new version the client says that the keeper is to be restarted.
    """
    fields = {kind.__name__: sorted(kind.model_fields) for kind in get_args(Asked)}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    assert (VERSION, digest) == (3, "14e453e6"), "raise VERSION, and write the new digest here"
