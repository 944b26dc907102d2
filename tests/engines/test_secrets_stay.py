"""An endpoint's key stays in the transport, whatever the endpoint repeats, and wherever."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.base import Endpoint
from backends.openai.exchange import secrets_of
from backends.openai.masking import MASK, NO_SECRETS, Secrets
from budget.errors import EndpointError, KeepwarmError
from shim import Shim
from tests.engines.hostile import EVENT_STREAM, Serve, ask, head, listening, read_request
from traces import RunTrace

KEY = 'sk-"Top\\Secret"/9876+key='
_ENCODED = base64.b64encode(f"user:{KEY}".encode()).decode()


def _echo(answer: Callable[[str], bytes]) -> Serve:
    def serve(connection: socket.socket) -> None:
        request = read_request(connection).decode()
        found = re.search(r"Authorization: Bearer (.*)", request)
        assert found is not None
        connection.sendall(answer(found[1].strip()))

    return serve


def _error(value: object, status: int = 401) -> bytes:
    return head(status) + json.dumps(value).encode()


def _event(value: object) -> bytes:
    return EVENT_STREAM + b"data: " + json.dumps(value).encode() + b"\n\n"


ECHOES: dict[str, Callable[[str], bytes]] = {
    "message": lambda key: _error({"error": {"message": f"wrong key: {key}", "type": key}}),
    "facts": lambda key: _error(
        {"error": {"message": "no", "param": key, "type": f"a{key}b"}}, 400
    ),
    "detail": lambda key: _error({"detail": [{"loc": ["header"], "input": f"Bearer {key}"}]}, 422),
    "text": lambda key: head(500) + f"Authorization: Bearer {key}".encode(),
    "page": lambda key: head(200) + f"<html><p>{key}</p></html>".encode(),
    "cut": lambda key: head(500) + b"x" * 290 + key.encode() * 10,
    "url": lambda key: head(404) + f"GET /v1?key={quote(key, safe='')}".encode(),
    "basic": lambda _key: head(403) + f"Authorization: Basic {_ENCODED}".encode(),
    "escapes": lambda key: head(500) + "".join(f"\\u{ord(c):04x}" for c in key).encode(),
    "percents": lambda key: head(500) + "".join(f"%{ord(c):02x}" for c in key).encode(),
    "html": lambda key: head(500) + "".join(f"&#{ord(c)};" for c in key).encode(),
    "reason": lambda key: f"HTTP/1.1 500 {key}\r\nContent-Length: 0\r\n\r\n".encode(),
    "header": lambda key: head(503, f"X-Echo: {key}") + b"busy",
    "illegal header": lambda key: f"HTTP/1.1 200 OK\r\n{key} {key}\r\n\r\n".encode(),
    "no http": lambda key: f"{key}\r\n\r\n".encode(),
    "encoding": lambda key: head(200, f"Content-Encoding: {key}"),
    "redirect": lambda key: head(302, f"Location: http://127.0.0.1:9/?key={key}") + key.encode(),
    "stream error": lambda key: _event({"error": {"message": key, "code": 401, "type": key}}),
    "stream error in words": lambda key: _event({"error": f"no: {key}"}),
    "malformed line": lambda key: EVENT_STREAM + f'data: {{"a": "{key}\n\n'.encode(),
    "wrong shape": lambda key: _event({"choices": [{"delta": {"content": {"key": key}}}]}),
    "type of a stream": lambda key: head(200, f"Content-Type: text/{key}") + key.encode(),
    "whole of wrong shape": lambda key: _error({"choices": key}, 200),
    "error with 200": lambda key: _error({"error": {"message": key}}, 200),
}


def _shown(error: KeepwarmError) -> list[str]:
    copied: KeepwarmError = pickle.loads(pickle.dumps(error))
    links: list[BaseException] = [error]
    for link in links:
        links += [other for other in (link.__cause__, link.__context__) if other]
    return [
        str(error),
        repr(error),
        json.dumps(error.to_wire()),
        repr(copied.to_wire()),
        "".join(traceback.format_exception(error)),
        *(f"{link!r} {link} {link.args} {vars(link)}" for link in links),
    ]


def _leaks(text: str) -> list[str]:
    """Spellings of the key, and pieces of it, that a text holds."""
    plain = [
        "Top",
        "Secret",
        "9876+key",
        quote(KEY, safe=""),
        "0065\\u0063",
        "%65%63",
        "&#101;&#99;",
    ]
    return [piece for piece in [*plain, _ENCODED[8:30]] if piece in text]


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_an_endpoint_repeats_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    echo: str,
    *,
    is_async: bool,
) -> None:
    """Not in a message, a fact, a representation, a cause, a traceback or a log, whole or in part."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FAR_KEY", KEY)
    for operation in ("chat", "stream", "embed"):
        with (
            listening(_echo(ECHOES[echo]), api_key_env="FAR_KEY") as endpoint,
            pytest.raises(KeepwarmError) as caught,
        ):
            ask(operation, endpoint, is_async=is_async)
        shown = [*_shown(caught.value), caplog.text, repr(endpoint)]
        assert [leak for text in shown for leak in _leaks(text)] == []


def _finishing_with(key: str) -> bytes:
    choice = {"delta": {"content": f"it is {key}"}, "finish_reason": key}
    return _event({"choices": [choice]}) + b"data: [DONE]\n\n"


def test_no_trace_holds_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the trace file nor the line in `runs.jsonl`, also where contents are recorded."""
    monkeypatch.setenv("FAR_KEY", KEY)
    for number, (name, echo) in enumerate({**ECHOES, "answer": _finishing_with}.items()):
        with listening(_echo(echo), api_key_env="FAR_KEY") as endpoint:
            far = {"url": endpoint.base_url, "backend": "openai", "api_key_env": "FAR_KEY"}
            shim = Shim({"models": {"far": far}})
            with RunTrace(f"r{number}", tmp_path, record_content=True):
                try:
                    list(shim.stream("far", "hello"))
                except KeepwarmError:
                    assert name != "answer"
            shim.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(ECHOES) + 2
    for path in files:
        text = path.read_text()
        assert "far" in text
        assert _leaks(text) == [], path


# -- the masking function ----------------------------------------------------------------------------

_KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=40)
_SPELLINGS: list[Callable[[str], str]] = [
    str,
    lambda key: repr(key)[1:-1],
    lambda key: json.dumps(key)[1:-1],
    lambda key: json.dumps(json.dumps(key))[3:-3],
    str.upper,
    quote,
    lambda key: quote(key, safe=""),
    lambda key: quote(quote(key, safe=""), safe=""),
    lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    lambda key: key.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;"),
]


@given(key=_KEYS, spelling=st.sampled_from(_SPELLINGS), before=st.text(max_size=5))
@example(key="\\\\\\\\", spelling=repr, before="\\")
@example(key="AFTE", spelling=str, before="")
@settings(derandomize=True, deadline=None, max_examples=300)
def test_every_spelling_of_a_key_is_masked(
    key: str, spelling: Callable[[str], str], before: str
) -> None:
    """As servers repeat it: plain, quoted, escaped, encoded."""
    # No key has a space or a letter beyond ASCII.
    masked = Secrets(key).mask(f"{before} {spelling(key)} \u00e4")
    assert MASK in masked
    assert masked.endswith(" \u00e4")
    assert key in MASK or key not in masked.removeprefix(before)


@given(key=_KEYS, user=st.text("abcxyz", max_size=4), after=st.text("abc", max_size=3))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_a_key_inside_base64_is_masked(key: str, user: str, after: str) -> None:
    """Wherever in the encoded bytes it begins; the rest shows at most one character of it."""
    if len(key) < 8:
        return
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(f"{user}:{key}{after}".encode()).decode()
        masked = Secrets(key).mask(f"Basic {encoded}")
        assert MASK in masked
        left, _, right = masked.removeprefix("Basic ").partition(MASK)
        assert len(left) <= (len(user) + 1) * 4 / 3 + 1
        assert len(right) <= len(after) * 4 / 3 + 4


@given(key=_KEYS, at=st.integers(0, 400), limit=st.integers(20, 300))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_a_quotation_is_cut_after_it_is_masked(key: str, at: int, limit: int) -> None:
    """Half a key at the end of a quotation would be most of it."""
    quoted = Secrets(key).quote("~" * at + key + " end", limit)
    assert len(quoted) <= limit + 6
    rest = quoted.replace(MASK, "").replace("~", "").replace(" [...]", "").replace(" end", "")
    assert rest.strip(" end*") == "" or rest.strip() in MASK


def test_a_short_key_is_masked_as_a_word_only() -> None:
    """A key of one letter does not make every text unreadable."""
    secrets = Secrets("a1")
    assert secrets.mask("Bearer a1, key=a1; a1") == "Bearer ***, key=***; ***"
    assert secrets.mask("data12 a1b ba1") == "data12 a1b ba1"


def test_what_a_url_holds_is_masked() -> None:
    """User, password and the values of the query, also encoded."""
    url = "http://far-user:pass%2Fword@far:8000/base?key=query-key&x=other-value"
    endpoint = Endpoint(url, "m", "openai")
    secrets = secrets_of(endpoint)
    for leak in ("pass/word", "pass%2Fword", "query-key", "other-value", "far-user:pass/word"):
        assert leak not in secrets.mask(f"at {leak}!")
        assert leak not in repr(endpoint)
    assert "http://far:8000/base" in repr(endpoint)
    assert secrets_of(Endpoint("http://[broken", "m", "openai")).mask("text") == "text"


def test_without_secrets_nothing_changes() -> None:
    """An engine of ours has no key; its errors are quoted as they are, on one line."""
    error = EndpointError("message", hint="hint", fact=["a"])
    NO_SECRETS.clean(error)
    assert error.to_wire()["facts"] == {"fact": ["a"]}
    assert NO_SECRETS.quote(b"a\x00b\n\n c\xff\x1b[0m") == "a�b c��[0m"


def test_causes_are_masked_through_loops_and_facts_at_every_depth() -> None:
    """Chains may be long or closed in themselves."""
    first: Any = EndpointError(
        "top-secret", deep={"top-secret": ["top-secret", {"a": "top-secret"}]}
    )
    second = ValueError("top-secret", b"top-secret", 7)
    first.__cause__, second.__context__ = second, first
    Secrets("top-secret").clean(first)
    assert "secret" not in f"{first!r} {first.facts} {second!r} {second}"
    assert second.args == ("***", b"***", 7)
