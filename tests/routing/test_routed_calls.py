"""Calls over several real endpoints, and models that take over, as callers see them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.openai.connections import connecting
from budget.errors import BadModelFile, Cancelled, MeasurementFailed
from shim import (
    ConfigError,
    EndpointUnavailable,
    InvalidRequest,
    QueueFull,
    Shim,
)
from shim.calls.routing.routes import takes_over
from tests.small_servers import Answer, as_json, small_server

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is tried again at once."""
    monkeypatch.setattr(connecting, "CONNECT_PAUSES_S", ())
    monkeypatch.setattr("backends.openai.exchange.CONNECT_PAUSES_S", ())


def answers(name: str) -> Callable[[str, bytes], Answer]:
    """A server that chats, whole or in a stream."""

    def says(path: str, body: bytes) -> Answer:
        if path == "/v1/models":
            return as_json({"data": []})
        said: dict[str, Any] = {"role": "assistant", "content": name}
        if json.loads(body).get("stream"):
            event = {"choices": [{"delta": said, "finish_reason": "stop"}]}
            return (
                200,
                "text/event-stream",
                f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode(),
            )
        return as_json({"choices": [{"message": said, "finish_reason": "stop"}]})

    return says


def fails(_path: str, _body: bytes) -> Answer:
    """A server whose model is not there."""
    return as_json({"error": {"message": "loading"}}, 503)


def far(*urls: str, **more: Any) -> dict[str, Any]:
    """A model at several endpoints, the first of which gets nearly all requests."""
    weights = [1e6, *[1e-3] * len(urls)]
    rows = [{"url": url, "weight": w} for url, w in zip(urls, weights, strict=False)]
    return {"endpoints": rows, **more}


def test_a_request_that_failed_before_its_first_token_goes_to_another_endpoint() -> None:
    """A whole answer, a stream, both awaited; the reply says where it came from."""
    with small_server(fails) as bad, small_server(answers("b")) as good:
        for dead in (DEAD, bad.url):
            with Shim({"models": {"m": far(dead, good.url)}}) as shim:
                reply = shim.chat("m", "x")
                assert (reply.content, reply.served_by) == ("b", f"m at {good.url}")
        with Shim({"models": {"m": far(bad.url, good.url)}}) as shim:
            with shim.stream("m", "x") as stream:
                assert "".join(map(str, stream)) == "b"
            assert stream.reply.served_by == f"m at {good.url}"
        with Shim({"models": {"m": far(bad.url, good.url)}}) as shim:
            assert asyncio.run(shim.achat("m", "x")).content == "b"
            assert [past.error for past in shim.history()] == [None]


def test_an_endpoint_that_failed_is_left_alone_and_checked_before_it_gets_a_request() -> None:
    """While it cools down all goes to the other one; then it is asked whether it is well."""
    clock = [0.0]
    with (
        small_server(fails) as first,
        small_server(answers("b")) as second,
        Shim({"models": {"m": far(first.url, second.url)}}) as shim,
    ):
        shim._session.routes._now_s = lambda: clock[0]
        shim._session.routes._draw = lambda: 0.0
        assert [shim.chat("m", "x").content for _ in range(3)] == ["b"] * 3
        assert [path for path, *_ in first.asked] == ["/v1/chat/completions"]
        clock[0] = 2.0
        assert shim.chat("m", "x").content == "b"
        assert [path for path, *_ in first.asked][1:] == ["/v1/models"]
        first.says = answers("a")
        clock[0] = 10.0
        assert [shim.chat("m", "x").content for _ in range(2)] == ["a", "a"]
        paths = [path for path, *_ in first.asked][2:]
        assert paths == ["/v1/models", "/v1/chat/completions", "/v1/chat/completions"]


def test_the_callers_mistake_goes_nowhere_else() -> None:
    """And is no failure of the endpoint."""
    refuses = lambda _path, _body: as_json({"error": {"message": "no such option"}}, 400)  # noqa: E731
    with small_server(refuses) as first, small_server(answers("b")) as second:
        with Shim({"models": {"m": far(first.url, second.url)}}) as shim:
            for _ in range(2):
                with pytest.raises(InvalidRequest, match="no such option"):
                    shim.chat("m", "x")
        assert (len(first.asked), second.asked) == (2, [])


def test_an_answer_that_began_is_not_asked_for_again_elsewhere() -> None:
    """Its caller has a token already: the break is an error, with the text so far."""
    event = {"choices": [{"delta": {"content": "half"}}]}
    broken = f"data: {json.dumps(event)}\n\n".encode()
    with (
        small_server(lambda _p, _b: (200, "text/event-stream", broken)) as first,
        small_server(answers("b")) as second,
        Shim({"models": {"m": far(first.url, second.url)}}) as shim,
    ):
        with shim.stream("m", "x") as stream:
            assert str(next(stream)) == "half"
            with pytest.raises(EndpointUnavailable):
                list(stream)
        assert second.asked == []


def test_an_endpoint_gets_no_more_requests_at_once_than_it_may() -> None:
    """The next one goes elsewhere; where there is no other it is refused, and not queued there."""
    arrived, go = threading.Event(), threading.Event()

    def slow(path: str, body: bytes) -> Answer:
        arrived.set()
        go.wait(60)
        return answers("slow")(path, body)

    with small_server(slow) as first:
        entry = {"endpoints": [{"url": first.url, "concurrency": 1}]}
        with Shim({"models": {"m": entry}}) as shim:
            said: list[str] = []
            thread = threading.Thread(target=lambda: said.append(shim.chat("m", "x").content))
            thread.start()
            arrived.wait(60)
            with pytest.raises(QueueFull, match="as many requests"):
                shim.chat("m", "x")
            go.set()
            thread.join()
            assert said == ["slow"]
            assert shim.chat("m", "x").content == "slow"


def test_a_fallback_takes_over_where_no_endpoint_answers() -> None:
    """Said in the reply; with the caller's options, and not for the caller's mistakes."""
    with small_server(answers("small")) as good:
        models = {
            "big": far(DEAD, "http://127.0.0.1:10", fallback="small"),
            "small": {"url": good.url, "model_id": "s"},
        }
        with Shim({"models": models}) as shim:
            reply = shim.chat("big", "x", max_tokens=3)
            assert (reply.model, reply.served_by) == ("big", f"small at {good.url}")
            sent = json.loads(good.asked[-1][2])
            assert (sent["model"], sent["max_tokens"]) == ("s", 3)
            with shim.stream("big", "x") as stream:
                assert "".join(map(str, stream)) == "small"
            good.says = fails
            with pytest.raises(EndpointUnavailable):
                shim.chat("big", "x")


def test_a_fallback_takes_over_where_a_model_does_not_load(tmp_path: Path) -> None:
    """Its file is not there, or what runs it ends; a call that was withdrawn moves nowhere."""
    with small_server(answers("small")) as good:
        models = {
            "absent": {"path": str(tmp_path / "none.gguf"), "fallback": "small"},
            "ends": {"command": ["false", "{port}"], "can": ["chat"], "fallback": "small"},
            "small": {"url": good.url},
        }
        with Shim({"budget": {"device": "host", "limit": "2GiB"}, "models": models}) as shim:
            for name in ("absent", "ends"):
                assert shim.chat(name, "x").content == "small"
                with shim.stream(name, "x") as stream:
                    assert "".join(map(str, stream)) == "small"
    assert takes_over(BadModelFile("", hint=""))
    assert takes_over(MeasurementFailed("", hint=""))
    assert not takes_over(Cancelled("", hint=""))


def test_a_model_whose_engine_dies_too_often_is_not_asked_for_a_while() -> None:
    """Its fallback gets the requests at once; a model without a fallback is asked all the same."""
    with small_server(answers("big")) as big, small_server(answers("small")) as small:
        models = {"big": {"url": big.url, "fallback": "small"}, "small": {"url": small.url}}
        with Shim({"models": models}) as shim:
            for name in models:
                for _ in range(3):
                    shim._session.routes.died(name)
            assert shim.chat("big", "x").content == "small"
            assert shim.chat("small", "x").content == "small"
            assert big.asked == []


def test_fallbacks_that_lead_in_a_circle_end() -> None:
    """Each model is asked once."""
    models = {"a": {"url": DEAD, "fallback": "b"}, "b": {"url": DEAD, "fallback": "a"}}
    with Shim({"models": models}) as shim, pytest.raises(EndpointUnavailable):
        shim.chat("a", "x")


@pytest.mark.real
def test_a_local_model_takes_over_from_an_endpoint_and_one_that_never_fits_is_taken_over(
    tiny_models: dict[str, Path],
) -> None:
    """A lease of the keeper as of any call, given back at the end."""
    small = {"path": str(tiny_models["producer"]), "context": 256}
    models = {
        "far": {"url": DEAD, "fallback": "small"},
        "big": {
            "path": str(tiny_models["evaluator"]),
            "context": 2**19,
            "slots": 64,
            "fallback": "small",
        },
        "small": small,
    }
    with Shim({"budget": {"device": "host", "limit": "300MiB"}, "models": models}) as shim:
        assert shim.chat("far", "x", max_tokens=1).served_by == "small"
        assert shim.chat("big", "x", max_tokens=1).served_by == "small"
        with shim.stream("far", "x", max_tokens=1) as stream:
            list(stream)
        rows = [row for row in shim.status()["engines"] if "small" in row["models"]]
        assert rows[0]["leases"] == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"endpoints": []}, "not a list of endpoints"),
        ({"endpoints": [{"weight": 1}]}, "without a url"),
        ({"endpoints": [{"url": "http://h", "weight": 0}]}, "no number above 0"),
        ({"endpoints": [{"url": "http://h", "wait": 1}]}, "'wait'"),
        ({"endpoints": ["http://h", "http://h"]}, "twice"),
        ({"endpoints": ["http://h"], "url": "http://g"}, "url and endpoints"),
        ({"endpoints": ["http://h"], "path": "m.gguf"}, "path"),
        ({"url": "http://h", "fallback": "m"}, "another model"),
        ({"url": "http://h", "fallback": "absent"}, "another model"),
    ],
)
def test_wrong_routes_are_mistakes_of_the_configuration(entry: dict[str, Any], words: str) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=words):
        Shim({"models": {"m": entry}})


def test_routes_cross_the_wire_as_they_were() -> None:
    """A configuration with endpoints can be written and read again."""
    with Shim({"models": {"m": far("http://h", "http://g/v1")}}) as shim:
        config = shim.config
        assert type(config).from_mapping(config.to_mapping()) == config
        assert [one.url for one in config.models["m"].endpoints] == ["http://h", "http://g"]
