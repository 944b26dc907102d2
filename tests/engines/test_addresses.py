"""Addresses as people write them, and what an endpoint says beside an error: where, where to, when."""

from __future__ import annotations

import socket

import pytest

from backends.base import Endpoint
from backends.openai.answers.foreign_errors import Heard, error_from_answer, seconds_to_wait
from backends.openai.exchange import CHAT_PATH, EMBED_PATH, Route
from budget.errors import EndpointError, EndpointUnavailable, KeepwarmError, QueueFull, UnknownModel
from shim.config.schema.values import parse_url
from tests.engines.hostile import Serve, ask, head, listening, read_whole

_FAR = Endpoint("http://far", "m", "openai")
_GOOD = head() + b'{"choices": [{"message": {"content": "hi"}}]}'


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("http://h", "/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions"),
        ("http://h/v1/chat/completions", "/v1/chat/completions"),
        ("http://h/openai/v1", "/openai/v1/chat/completions"),
        ("http://h/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("http://h/v1beta/openai/chat/completions", "/v1beta/openai/chat/completions"),
        ("http://h/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("http://h/api/paas/v4/chat/completions", "/api/paas/v4/chat/completions"),
        ("http://h/chat/completions", "/chat/completions"),
        ("http://h/llm", "/llm/v1/chat/completions"),
    ],
)
def test_an_address_is_understood_with_and_without_its_end(written: str, asked: str) -> None:
    """With `/v1`, another version's root, the whole path of a chat; embeddings lie beside it."""
    route = Route.to(Endpoint(parse_url(written), "m", "openai"))
    assert route.url(CHAT_PATH).target.decode() == asked
    assert route.url(EMBED_PATH).target.decode() == asked.replace("chat/completions", "embeddings")


@pytest.mark.parametrize("status", [404, 405])
def test_an_address_that_is_not_there_is_quoted(status: int) -> None:
    """The whole of it, as it was asked."""
    with (
        listening(_says(head(status) + b"Not Found")) as endpoint,
        pytest.raises(EndpointError) as e,
    ):
        ask("chat", endpoint)
    assert e.value.facts["url"] == f"{endpoint.base_url}/v1/chat/completions"
    assert f"{endpoint.base_url}/v1/chat/completions" in str(e.value)


def test_an_unknown_model_says_where_it_was_asked_for() -> None:
    """The same for a model that the endpoint does not serve."""
    body = b'{"error": {"message": "no such model", "param": "model"}}'
    error = error_from_answer(_FAR, 404, body, heard=Heard(asked="http://far/v1/x"))
    assert isinstance(error, UnknownModel)
    assert "http://far/v1/x" in str(error)


def test_a_redirect_says_where_it_leads() -> None:
    """It is not followed: the key would go with it."""
    answer = head(308, "Location: https://elsewhere/v1/chat/completions")
    with listening(_says(answer)) as endpoint, pytest.raises(EndpointError) as caught:
        ask("chat", endpoint)
    assert caught.value.facts["location"] == "https://elsewhere/v1/chat/completions"
    assert "https://elsewhere" in str(caught.value)
    assert "url" in caught.value.hint


def _says(*answers: bytes) -> Serve:
    """Gives these answers one after the other, and the last one again and again."""
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        if read_whole(connection)[0]:
            connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return serve


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_that_says_when_to_ask_again_is_asked_again(
    status: int, *, is_async: bool
) -> None:
    """Once, where that is soon."""
    busy = head(status, "Retry-After: 0") + b"{}"
    with listening(_says(busy, _GOOD)) as endpoint:
        assert ask("chat", endpoint, is_async=is_async).content == "hi"
    with listening(_says(busy, busy, _GOOD)) as endpoint, pytest.raises(KeepwarmError) as caught:
        ask("chat", endpoint, is_async=is_async)
    assert isinstance(caught.value, QueueFull | EndpointUnavailable)
    assert caught.value.facts["retry_after_s"] == 0.0


def test_a_wait_that_is_long_is_handed_on() -> None:
    """The caller is told at once, in words and as a fact."""
    with listening(_says(head(429, "Retry-After: 77") + b"{}", _GOOD)) as endpoint:
        with pytest.raises(QueueFull) as caught:
            ask("chat", endpoint)
        assert caught.value.facts["retry_after_s"] == 77.0
        assert "77 s" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 70.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("1e300", None),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(said: str, seconds: float | None) -> None:
    """Seconds and dates; what says nothing is nothing."""
    assert seconds_to_wait(said, now_s=30.0) == seconds


@pytest.mark.parametrize("operation", ["chat", "stream", "embed"])
def test_a_web_page_is_named_as_that(operation: str) -> None:
    """A portal or a front page that answers with status 200."""
    page = head(200, "Content-Type: text/html") + b"\n<!DOCTYPE html><html>Log in</html>"
    with (
        listening(_says(page)) as endpoint,
        pytest.raises(EndpointError, match="web page") as caught,
    ):
        ask(operation, endpoint)
    assert "url" in caught.value.hint
