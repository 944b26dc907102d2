"""Models with `backend = "server"` as callers see them: a real server of the user, under the budget."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.flows import run_blocking
from shim import (
    EndpointError,
    EngineDied,
    EngineTimeout,
    InvalidRequest,
    KeepwarmError,
    LoadFailed,
    Shim,
)
from tests.processes import alive, wait_until
from tests.servers.conftest import Make
from tests.servers.support import server
from tests.small_servers import as_json, small_server

KEY = {"SERVER_KEY": "{key}"}


def row(shim: Shim, name: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    return next(found for found in shim.status()["engines"] if name in found["models"])


@pytest.mark.parametrize("where", ["{port}", "{socket}"])
def test_a_server_of_openais_api_chats_streams_and_embeds(make: Make, where: str) -> None:
    """On a port with a key of its own, and on a Unix socket; the budget holds its bytes."""
    shim = make({"s": server(where=where, env=KEY)})
    reply = shim.chat("s", "Hi")
    assert (reply.content, reply.usage.completion_tokens) == ("Hello you", 2)
    assert reply.residency.cold
    with shim.stream("s", "Hi") as stream:
        assert [piece.content for piece in stream if piece.content] == ["Hello", " you"]
    assert shim.embed("s", ["four", "six..."]).vectors == ((4.0,), (6.0,))
    assert row(shim, "s")["bytes"]["host"] >= 64 << 20
    assert shim.unload("s")
    assert not shim.status()["devices"][0]["reserved_bytes"]


def test_its_own_paths_are_reached_by_a_client_that_holds_a_lease(make: Make) -> None:
    """The key is sent along; closing the client gives the lease back."""
    shim = make({"s": server(can=[], env=KEY)})
    with shim.http("s") as http:
        answer = http.post("/inference", files={"file": b"sound"})
        assert answer.json()["text"] == "heard"
        assert len(row(shim, "s")["leases"]) == 1
        assert http.post("/leak").status_code == 500
    assert row(shim, "s")["leases"] == []
    http.close()

    async def twice() -> list[int]:
        async with shim.ahttp("s") as client:
            first = await client.post("/inference", content=b"12345")
        client = await shim.ahttp("s")
        second = await client.post("/inference", content=b"123")
        await client.aclose()
        return [first.json()["bytes"], second.json()["bytes"]]

    assert asyncio.run(twice()) == [5, 3]
    assert row(shim, "s")["leases"] == []
    assert [past.operation for past in shim.history()] == ["http"] * 3


def test_a_client_that_is_used_after_its_end_or_entered_twice_is_refused(make: Make) -> None:
    """With a typed error, as any other mistake of the caller."""
    shim = make({"s": server(can=[])})
    with shim.http("s") as http, pytest.raises(InvalidRequest, match="entered already"):
        http.__enter__()
    for use in (lambda: http.get("/health"), http.__enter__):
        with pytest.raises(InvalidRequest, match="closed"):
            use()

    async def misused() -> None:
        async with shim.ahttp("s") as client:
            with pytest.raises(InvalidRequest, match="entered already"):
                await client.__aenter__()
        with pytest.raises(InvalidRequest, match="closed"):
            await client.get("/health")

    asyncio.run(misused())


def test_a_client_whose_failed_request_told_that_its_lease_is_gone_sends_no_other(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper says it once, and the request after it disturbed what is there now."""
    shim = make({"s": server(can=[])})
    with shim.http("s") as http:
        lease = http._lease
        connection = lease._call.connection
        assert connection is not None

        async def runs(*_args: object, **_fields: object) -> dict[str, object]:
            gone = EngineTimeout("It was taken back.").to_wire()
            connection.heard.append({"notice": "revoked", "lease": lease.lease, "error": gone})
            return {"death": None, "bytes": None}

        monkeypatch.setattr(connection, "ask", runs)
        broken = httpx.ReadError("broken off", request=httpx.Request("GET", "http://here"))
        assert isinstance(run_blocking(lease.failure(broken)), EngineTimeout)
        with pytest.raises(EngineTimeout, match="taken back"):
            http.get("/health")


def test_a_call_that_would_wait_for_its_own_client_is_refused_at_once(make: Make) -> None:
    """It waited until the lease was taken back as that of a client that does not answer."""
    shim = make({"s": server()})
    refused = pytest.raises(InvalidRequest, match="s is asked for inside a stream or client of s")
    with shim.http("s"), refused:
        shim.chat("s", "Hi")
    shim.chat("s", "Hi")

    async def inside() -> None:
        async with shim.ahttp("s") as http:
            await http.get("/health")
            with pytest.raises(InvalidRequest, match="inside a stream or client of s"):
                await shim.achat("s", "Hi")
        await shim.achat("s", "Hi")

    asyncio.run(inside())


def test_its_key_follows_no_redirect_and_goes_to_no_other_host(make: Make) -> None:
    """A redirect is an answer unless it is asked to be followed; the other host gets no key then."""
    shim = make({"s": server(can=[], env=KEY)})
    with small_server(lambda _path, _body: as_json("here")) as other, shim.http("s") as http:
        assert http.post(f"/away/{other.url}/x").status_code == 307
        assert other.asked == []
        assert http.post(f"/away/{other.url}/x", follow_redirects=True).json() == "here"
    assert [path for path, _, _ in other.asked] == ["/x"]
    assert all("Authorization" not in headers for _, headers, _ in other.asked)


@pytest.mark.parametrize("where", ["{port}", "{socket}"])
def test_a_request_for_another_host_or_that_cannot_be_written_is_refused_before_it_is_sent(
    make: Make, where: str
) -> None:
    """The client is for its model's server alone; what is no Unicode or no JSON is the caller's mistake."""
    shim = make({"s": server(where=where, can=[], env=KEY)})
    nested: list[Any] = []
    nested.append(nested)
    odd: list[dict[str, Any]] = [
        {"url": "/\ud800"},
        {"url": "/x", "params": {"a": "\udfff"}},
        {"url": "/x", "headers": {"X-Name": "\ud800"}},
        {"url": "/x", "headers": {"X-Name": "two\nlines"}},
        {"url": "/x", "json": {"text": "\ud800"}},
        {"url": "/x", "auth": ("name", "\ud800")},
        {"url": "ftp://127.0.0.1/x"},
        {"url": "http://[/x"},
        *({"url": "/x", "json": {"a": [value]}} for value in ({1}, math.nan, object())),
        {"url": "/x", "json": nested},
    ]

    async def asked(requests: list[dict[str, Any]]) -> None:
        async with shim.ahttp("s") as http:
            for request in requests:
                with pytest.raises(InvalidRequest):
                    await http.post(**request)

    with small_server(lambda _path, _body: as_json("here")) as other:
        requests = [{"url": f"{other.url}/y"}, *odd]
        with shim.http("s") as http:
            for request in requests:
                with pytest.raises(InvalidRequest):
                    http.post(**request)
            assert http.post("/inference").status_code == 200
        asyncio.run(asked(requests))
    assert other.asked == []


def test_what_cannot_be_read_of_its_own_paths_is_a_typed_error(make: Make) -> None:
    """A body that breaks off, read at once or as it comes; an encoding that is none; endless redirects."""
    shim = make({"s": server(can=[])})
    with shim.http("s") as http:
        with pytest.raises(KeepwarmError, match="peer closed connection"):
            http.post("/half")
        with http.stream("POST", "/half") as answer, pytest.raises(KeepwarmError):
            answer.read()
        with pytest.raises(EndpointError, match="cannot be used"):
            http.post("/not-gzip")
        with pytest.raises(EndpointError, match=r"cannot be used.*redirects"):
            http.post("/away//away/", follow_redirects=True)
    assert row(shim, "s")["leases"] == []

    async def streamed() -> None:
        async with shim.ahttp("s") as http, http.stream("POST", "/half") as answer:
            await answer.aread()

    with pytest.raises(KeepwarmError, match="peer closed connection"):
        asyncio.run(streamed())
    assert row(shim, "s")["leases"] == []


def test_a_verb_that_it_does_not_name_is_refused_before_anything_is_loaded(make: Make) -> None:
    """`can` says what a server does of OpenAI's API; the error names models that do it."""
    shim = make({"s": server(can=["embed"]), "talks": server()})
    with pytest.raises(InvalidRequest, match=r"s does not chat.*backend = .server.") as caught:
        shim.chat("s", "Hi")
    assert caught.value.facts["models"] == ["talks"]
    assert not any(found["state"] == "resident" for found in shim.status()["engines"])


def test_a_death_is_an_error_with_the_log_and_the_next_request_starts_it_again(make: Make) -> None:
    """The log never shows the key."""
    shim = make({"s": server(can=[], env=KEY)})
    with shim.http("s") as http, pytest.raises(EngineDied) as caught:
        http.post("/die")
    tail = caught.value.facts["log_tail"]
    assert isinstance(tail, list)
    assert tail[-2:] == ["begins with key sk-***", "about to die"]
    with shim.http("s") as http:
        assert http.post("/inference").status_code == 200


def test_an_error_that_repeats_the_key_does_not_show_it(make: Make, folder: Path) -> None:
    """Neither in the message nor in the facts; and the key is on no command line."""
    (folder / "door.py").write_text(
        (folder / "door.py").read_text().replace('"/leak"', '"/v1/chat/completions"')
    )
    shim = make({"s": server(env=KEY)})
    with pytest.raises(EndpointError, match=r"your key is \*\*\*") as caught:
        shim.chat("s", "Hi")
    pid = row(shim, "s")["pid"]
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (key,) = [word.partition(b"=")[2].decode() for word in words if word.startswith(b"SERVER_KEY")]
    assert len(key) > 20
    assert key not in repr((caught.value.facts, caught.value.args, shim.status()))
    assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_it_started_ends_with_it(make: Make, folder: Path) -> None:
    """Also a child in a session of its own."""
    shim = make({"s": server("child")})
    shim.load("s")
    child = int((folder / "child").read_text())
    assert alive(child)
    assert shim.unload("s")
    assert wait_until(lambda: not alive(child))


def test_a_stop_signal_asks_it_to_end(make: Make, folder: Path) -> None:
    """Without one it is killed."""
    shim = make({"s": server("asked", stop_signal="INT")})
    shim.load("s")
    assert shim.unload("s")
    assert (folder / "ended").read_text() == "well"


def test_what_it_took_is_learned_for_the_next_load(make: Make) -> None:
    """Declared far too low: what is measured is booked, and booked again at the next load."""
    shim = make({"s": server("heavy", bytes="16MiB")})
    shim.chat("s", "Hi")
    shim.unload("s")
    shim.load("s")
    assert row(shim, "s")["bytes"]["host"] > 96 << 20


def test_bytes_far_below_what_is_measured_are_said_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The device is over its limit and admits nothing more; requests of the model go on."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    shim = make({"s": server("heavy", bytes="1MiB")}, budget={"device": "host", "limit": "64MiB"})
    shim.pin("s")
    assert wait_until(lambda: row(shim, "s")["bytes"]["host"] > 96 << 20)
    assert shim.status()["devices"][0]["over_limit"]
    assert shim.chat("s", "Hi").content == "Hello you"
    said = [r.getMessage() for r in caplog.records if "host is over its limit" in r.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"command": ["./no-such", "{port}"]}, "no-such cannot be started: no program"),
        ({"command": ["no-such-program", "{port}"]}, "it is not on PATH"),
        (server("exits"), r"exited with code 3 before it was ready\.(.|\n)*no such model"),
        (server("elsewhere"), r"answers /health at port \d+, and was given port \d+"),
    ],
)
def test_a_command_that_never_serves_is_named_with_what_was_seen(
    make: Make, keys: dict[str, Any], words: str
) -> None:
    """It cannot be run, it ends at once, or it serves another port."""
    shim = make({"s": {"bytes": "64MiB", "can": ["chat"], **keys}})
    with pytest.raises(LoadFailed, match=words):
        shim.chat("s", "Hi")
    assert shim.status()["devices"][0]["reserved_bytes"] == 0
