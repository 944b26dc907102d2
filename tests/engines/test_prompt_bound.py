"""A prompt that no context can hold is refused before it is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import ChatRequest
from backends.openai.connections.prompt_bound import TOKEN_BYTES, check_prompt
from budget.errors import PromptTooLong
from shim import Shim
from tests.engines.hostile import ask, head, listening, says

ENGINE = Endpoint("http://engine", "m", "llama.cpp", "/tmp/e.sock", context_per_slot=512)
MOST = (512 + 256) * TOKEN_BYTES


def _chat(*contents: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": c} for c in contents]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        _chat("a" * (MOST + 1)),
        _chat("a" * MOST, "b"),
        _chat(*["x"] * (MOST // 64 + 1)),
        _chat([{"type": "text", "text": "ä" * MOST}]),
        json.dumps({"input": ["short", "a" * (MOST + 1)]}).encode(),
        json.dumps({"input": "a" * (MOST + 1)}).encode(),
    ],
)
def test_texts_of_more_bytes_than_the_context_has_room_for_are_refused(body: bytes) -> None:
    """All messages together, each with some room, or one text to embed; the facts have the numbers."""
    with pytest.raises(PromptTooLong, match="512 tokens") as caught:
        check_prompt(ENGINE, body)
    assert caught.value.facts["n_ctx"] == 512
    assert caught.value.facts["most_bytes"] == MOST


@pytest.mark.parametrize(
    "body",
    [
        _chat("a" * MOST),
        _chat(*["x"] * (MOST // 64)),
        _chat("ä" * (MOST // 2)),
        _chat([{"type": "image_url", "image_url": {"url": "a" * 2 * MOST}}], None),
        json.dumps({"input": ["a" * MOST] * 3}).encode(),
        json.dumps({"input": [[1, 2]], "messages": [7]}).encode(),
        b"[" * 5000,
        b"not JSON" * MOST,
        b"[]",
    ],
)
def test_whatever_may_fit_is_sent(body: bytes) -> None:
    """Images are no text, escapes are no bytes, and several texts are evaluated one by one."""
    check_prompt(ENGINE, body)


def test_an_endpoint_elsewhere_knows_its_own_bound() -> None:
    """Nothing is assumed of a context that is not ours."""
    check_prompt(replace(ENGINE, context_per_slot=None), _chat("a" * 10 * MOST))


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
def test_a_request_that_is_refused_is_not_sent(runtime_dir: Path, *, is_async: bool) -> None:
    """The engine sees no connection of it, and the next request is answered."""
    heard: list[int] = []
    answer = says(head() + b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}')

    def serve(connection: Any) -> None:
        heard.append(1)
        answer(connection)

    with listening(serve, runtime_dir / "e.sock") as endpoint:
        small = replace(endpoint, context_per_slot=1)
        with pytest.raises(PromptTooLong):
            ask("chat", small, is_async=is_async, request=ChatRequest("a" * 100_000))
        assert ask("chat", small, is_async=is_async).content == "ok"
    assert heard == [1]


@pytest.mark.real
def test_a_prompt_of_megabytes_costs_a_real_engine_nothing(tiny_models: dict[str, Path]) -> None:
    """The caller gets the numbers, and the engine serves on."""
    entry = {"path": str(tiny_models["evaluator"]), "context": 512}
    with Shim({"budget": {"device": "host"}, "models": {"m": entry}}) as shim:
        with pytest.raises(PromptTooLong) as caught:
            shim.chat("m", "word " * 400_000)
        assert caught.value.facts["n_bytes"] == 2_000_000
        assert shim.chat("m", "Hello.", max_tokens=1).usage.completion_tokens == 1
        assert shim.describe("m").context_per_slot == 512
