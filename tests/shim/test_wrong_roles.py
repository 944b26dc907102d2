"""What a model's role rules out is refused before the keeper is asked for a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim import EndpointUnavailable, InvalidRequest, Shim
from shim.calls.session import Session


class Asked(Exception):
    """The keeper would have been asked."""


@pytest.fixture
def shim(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Shim:
    """A chat model and an embedder, and no keeper."""

    def connect(_session: Session) -> None:
        raise Asked

    monkeypatch.setattr(Session, "_connect", connect)
    models = {
        "chats": {"path": str(tiny_models["producer"])},
        "embeds": {"path": str(tiny_models["classifier"]), "role": "embedder"},
    }
    return Shim({"budget": {"device": "host"}, "models": models})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.chat("embeds", "Hi."), "embeds does not chat"),
        (lambda s: s.stream("embeds", "Hi."), "embeds does not chat"),
        (lambda s: asyncio.run(s.achat("embeds", "Hi.")), "embeds does not chat"),
        (lambda s: asyncio.run(s.astream("embeds", "Hi.")), "embeds does not chat"),
        (lambda s: s.embed("chats", "Hi."), "chats does not embed"),
        (lambda s: asyncio.run(s.aembed("chats", "Hi.")), "chats does not embed"),
    ],
)
def test_a_call_that_the_role_rules_out_asks_for_no_lease(
    shim: Shim, call: Callable[[Shim], Any], words: str
) -> None:
    """Nothing is loaded for it, and nothing is evicted."""
    with pytest.raises(InvalidRequest, match=words):
        call(shim)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.chat("chats", "Hi."),
        lambda s: s.embed("embeds", "Hi."),
        lambda s: s.load("embeds"),
        lambda s: s.pin("embeds"),
        lambda s: s.declare(["embeds", "chats"]),
    ],
)
def test_what_the_role_allows_is_asked_for(shim: Shim, call: Callable[[Shim], Any]) -> None:
    """A load of an embedder is no chat with it."""
    with pytest.raises(Asked):
        call(shim)


REMOTE = {"url": "http://127.0.0.1:9/v1", "role": "evaluator"}


@pytest.mark.parametrize("beside", [{}, {"judge": {"path": "gone.gguf", "role": "evaluator"}}])
def test_calls_of_remote_models_open_no_model_file_and_start_no_keeper(
    monkeypatch: pytest.MonkeyPatch, beside: dict[str, Any]
) -> None:
    """A role is checked where a file is used; the file of an endpoint is elsewhere."""

    def opened(*_: object, **__: object) -> None:
        raise Asked

    for place in ("backends.gguf.read_header", "shim.models.read_header"):
        monkeypatch.setattr(place, opened)
    monkeypatch.setattr(Session, "_make_inline", opened)
    shim = Shim({"models": {"far": REMOTE, **beside}})
    if not beside:
        shim.__enter__()
    with shim.plan(["far"]), pytest.raises(EndpointUnavailable):
        shim.chat("far", "Hi.")
    with pytest.raises(EndpointUnavailable):
        asyncio.run(shim.achat("far", "Hi."))
    assert shim.load("far") == shim.pin("far") == {"remote": True}
    assert shim.describe("far").remote
    shim.close()
