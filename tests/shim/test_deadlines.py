"""`deadline_s` bounds the whole call: waiting, the engine's work, a remote endpoint's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backends.scripted import Script
from shim import DeadlineExceeded, InvalidRequest, Shim
from tests.engines.hostile import EVENT_STREAM, head, listening, token, trickles
from tests.shim.conftest import Stage

Ask = Callable[[Shim, str], Any]


def _stream(shim: Shim, model: str) -> Any:
    return list(shim.stream(model, "Hello.", deadline_s=0.3))


async def _astream(shim: Shim, model: str) -> Any:
    async with await shim.astream(model, "Hello.", deadline_s=0.3) as stream:
        return [piece async for piece in stream]


ASKS: dict[str, Ask] = {
    "chat": lambda shim, model: shim.chat(model, "Hello.", deadline_s=0.3),
    "stream": _stream,
    "achat": lambda shim, model: asyncio.run(shim.achat(model, "Hello.", deadline_s=0.3)),
    "astream": lambda shim, model: asyncio.run(_astream(shim, model)),
    "background": lambda shim, model: shim.chat(model, "Hello.", deadline_s=0.3, priority=-1),
}


@pytest.mark.parametrize("way", ASKS)
def test_an_engine_that_takes_too_long_ends_at_the_deadline(stage: Stage, way: str) -> None:
    """The call has its lease and an answer that has begun; the lease comes back."""
    stage.shim.load("a")
    stage.engines[-1].script = Script(token_gate=asyncio.Event())
    with pytest.raises(DeadlineExceeded, match="deadline"):
        ASKS[way](stage.shim, "a")
    assert stage.lease_count() == 0
    stage.engines[-1].script = Script()
    assert stage.shim.chat("a", "Hello.", deadline_s=60).content == "one two three"


@pytest.mark.parametrize("way", ASKS)
def test_a_remote_endpoint_that_takes_too_long_ends_at_the_deadline(way: str) -> None:
    """It sends all the time, and never an end."""
    start = EVENT_STREAM if "stream" in way else head()
    with listening(trickles(start, token())) as endpoint:
        config = {"models": {"far": {"url": endpoint.base_url, "backend": "openai"}}}
        with Shim(config) as shim, pytest.raises(DeadlineExceeded, match="deadline"):
            ASKS[way](shim, "far")


@pytest.mark.parametrize(
    "seconds",
    [
        0,
        -1,
        float("nan"),
        float("inf"),
        1e308,
        10**400,
        pytest.param(10**5000, id="huge"),
        True,
        "1",
    ],
)
def test_a_deadline_that_is_none_is_refused(stage: Stage, seconds: Any) -> None:
    """Before anything is asked of the keeper or an endpoint."""
    for model in ("a", "remote"):
        with pytest.raises(InvalidRequest, match="deadline_s"):
            stage.shim.chat(model, "Hello.", deadline_s=seconds)
