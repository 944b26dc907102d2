"""Prometheus reads what the keeper did, and its reading changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script
from budget.errors import DeadlineExceeded, KeepwarmError
from shim.keeper.metrics import scraping
from tests.metrics.conftest import Open
from tests.metrics.scrapes import LIMIT_S, UnixConnection, read

REQUESTS = "gen_ai_server_request_duration_seconds_count"
LOADS = "keepwarm_load_duration_seconds_count"


def test_requests_loads_evictions_and_bytes_are_counted(watched: Open) -> None:
    """Three requests of two models of which one fits: what Prometheus reads adds up to that."""
    it = watched()
    for model in ("a", "a", "b"):
        it.chat(model)
    seen = it.scrape()
    assert [seen.of(REQUESTS, gen_ai_request_model=model) for model in "ab"] == [2, 1]
    assert seen.of("keepwarm_queue_duration_seconds_count") == 3
    assert seen.of("gen_ai_server_time_to_first_token_seconds_count") == 3
    assert seen.of("gen_ai_server_time_per_output_token_seconds_count") == 3
    tokens = {
        kind: seen.of("gen_ai_client_token_usage_sum", gen_ai_token_type=kind)
        for kind in ("input", "output")
    }
    assert tokens == {"input": 3, "output": 9}
    assert [seen.of(LOADS, keepwarm_model=m, keepwarm_storage="staged") for m in "ab"] == [1, 1]
    assert (
        seen.of("keepwarm_evictions_total", keepwarm_model="a", keepwarm_reason="for another model")
        == 1
    )
    (device,) = it.shim.status()["devices"]
    assert seen.of("keepwarm_model_resident_bytes", keepwarm_model="a") == 0
    assert (
        seen.of("keepwarm_model_resident_bytes", keepwarm_model="b") == device["reserved_bytes"] > 0
    )
    assert seen.of("keepwarm_device_bookable_bytes", keepwarm_device="host") == device["free_bytes"]
    assert seen.of("keepwarm_queue_depth") == seen.of("keepwarm_slots_busy") == 0


def test_a_stream_and_vectors_have_their_own_operation_and_first_token(watched: Open) -> None:
    """What the keeper cannot see, because answers do not pass through it, its clients tell."""
    it = watched()
    with it.shim.stream("a", [{"role": "user", "content": "hello"}]) as stream:
        assert len(list(stream)) >= 3
    it.shim.embed("a", ["one text"])
    seen = it.scrape()
    first = "gen_ai_server_time_to_first_token_seconds_count"
    assert seen.of(first, gen_ai_operation_name="chat") == 1
    assert seen.of(REQUESTS, gen_ai_operation_name="embeddings") == 1


def test_denials_deaths_and_failed_requests_are_counted_by_their_error(watched: Open) -> None:
    """What an alert is about: each has its number and the type of its error."""
    it = watched({"a": Script(die_after=1), "b": Script(load="fail")})
    with pytest.raises(KeepwarmError):
        it.chat("a")
    with pytest.raises(KeepwarmError):
        it.chat("b")
    seen = it.scrape()
    assert seen.of("keepwarm_engine_deaths_total", keepwarm_model="a") >= 1
    assert seen.of(REQUESTS, gen_ai_request_model="a", error_type="EngineDied") == 1
    assert seen.of("keepwarm_denials_total", gen_ai_request_model="b", error_type="LoadFailed") == 1
    assert seen.of(LOADS, keepwarm_model="b", error_type="LoadFailed") == 1


def test_a_request_that_waits_is_seen_waiting(watched: Open) -> None:
    """Queue depth and age show the request that cannot be granted now, and drop when it is gone."""
    it = watched()
    it.shim.pin("a")
    with pytest.raises(DeadlineExceeded):
        it.shim.chat("b", [{"role": "user", "content": "hello"}], deadline_s=0.2)
    seen = it.scrape()
    assert seen.of("keepwarm_denials_total", error_type="DeadlineExceeded") == 1
    assert seen.of("keepwarm_queue_depth") == 0


def test_scraping_loads_nothing_and_resets_no_timer(watched: Open) -> None:
    """A model that nothing uses but a scraper leaves when its keep_alive is over, and none is loaded."""
    it = watched()
    it.chat("a")
    before = it.shim.status()
    for _ in range(10):
        it.scrape()
    after = it.shim.status()

    def still(status: dict[str, Any]) -> list[tuple[Any, ...]]:
        keys = ("id", "state", "uses", "generation", "bytes")
        return [tuple(row[key] for key in keys) for row in status["engines"]]

    assert still(after) == still(before)
    idle = [
        [row["idle_s"] for row in status["engines"] if row["idle_s"]] for status in (before, after)
    ]
    assert idle[1] > idle[0], "the time since the last use went on"


def test_the_socket_is_private_and_gone_with_its_keeper(watched: Open) -> None:
    """No other user reads the names of models there."""
    it = watched()
    assert stat.S_IMODE(it.place.stat().st_mode) == 0o600
    it.shim.close()
    assert not it.place.exists()


def test_a_port_is_read_by_its_own_name_only(watched: Open) -> None:
    """A web page whose name was made to point at this machine does not get to read the metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    it = watched(metrics={"prometheus": f"127.0.0.1:{port}"})
    it.chat("a")
    it.settle()
    assert read(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)).of(REQUESTS) == 1
    stranger = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    stranger.request("GET", "/metrics", headers={"Host": "attacker.example:80"})
    assert stranger.getresponse().status == HTTPStatus.FORBIDDEN
    stranger.close()


def test_a_place_that_cannot_be_had_costs_no_request(watched: Open, runtime_dir: Path) -> None:
    """Another program's file at the path stays, requests are served, and `ps` says what is wrong."""
    (runtime_dir / "metrics.sock").write_text("mine")
    it = watched()
    assert it.chat("a") == "one two three"
    assert (runtime_dir / "metrics.sock").read_text() == "mine"
    faults = it.shim.status()["keeper"]["faults"]
    assert [row["kind"] for row in faults] == ["metrics"]
    assert "no socket of yours" in faults[0]["text"]


def test_a_scraper_that_asks_and_never_reads_holds_up_no_request(watched: Open) -> None:
    """The scraper's thread waits for it; the keeper's loop does not."""
    it = watched()
    silent = UnixConnection(it.place)
    silent.connect()
    assert it.chat("a") == "one two three"
    silent.close()
    assert it.scrape().of(REQUESTS) == 1


def test_a_scraper_that_sends_a_byte_now_and_then_is_hung_up_on(
    watched: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte used to begin its time anew: one client kept all others from the metrics for days."""
    monkeypatch.setattr(scraping, "SCRAPE_S", 0.2)
    it = watched()
    slow = UnixConnection(it.place)
    slow.connect()
    slow.sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    assert it.chat("a") == "one two three"
    while not select.select([slow.sock], [], [], 0.01)[0]:
        with contextlib.suppress(BrokenPipeError):
            slow.sock.sendall(b"x")
    slow.close()
    assert it.scrape().of(REQUESTS) == 1


def test_a_silent_scraper_and_many_at_once_keep_none_waiting(
    watched: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was served at a time and five could wait: the silent one held all up."""
    monkeypatch.setattr(scraping, "SCRAPE_S", 10 * LIMIT_S)
    monkeypatch.setattr(scraping._Handler, "timeout", 10 * LIMIT_S)
    it = watched()
    silent = UnixConnection(it.place)
    silent.connect()
    silent.sock.sendall(b"GET /me")
    assert it.chat("a") == "one two three"
    many = [UnixConnection(it.place) for _ in range(60)]
    for one in many:
        one.connect()
    assert [read(one).of(REQUESTS) for one in many] == [1] * len(many)
    silent.close()


@pytest.mark.parametrize(
    "sent",
    [b"\0" * 200_000, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 50_000],
    ids=("nuls", "headers"),
)
def test_a_client_that_floods_the_socket_is_hung_up_on(watched: Open, sent: bytes) -> None:
    """Neither is its request read to its end, nor does the keeper or the next scraper notice."""
    it = watched()
    with socket.socket(socket.AF_UNIX) as flood:
        flood.settimeout(LIMIT_S)
        flood.connect(str(it.place))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            flood.sendall(sent)
            while flood.recv(65_536):
                pass
    assert it.chat("a") == "one two three"
    assert it.scrape().of(REQUESTS) == 1


def test_many_scrapers_at_once_are_served_beside_requests(watched: Open) -> None:
    """One after another, by a thread that is not the keeper's own."""
    it = watched()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(read, UnixConnection(it.place)) for _ in range(40)]
        assert it.chat("a") == "one two three"
        for one in asked:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                one.result()
    assert it.scrape().of(REQUESTS) == 1


def test_an_earlier_keepers_socket_is_replaced(
    tiny_models: dict[str, Path], watched: Open, runtime_dir: Path
) -> None:
    """After a crash of a keeper the next one publishes at the same path."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(runtime_dir / "metrics.sock"))
    left.close()
    it = watched()
    it.chat("a")
    assert it.scrape().of(REQUESTS) == 1


def test_without_the_section_nothing_is_published(watched: Open) -> None:
    """The default: no socket, no port, and nothing is kept of what ended."""
    it = watched(metrics={})
    assert it.chat("a") == "one two three"
    assert not it.place.exists()
