"""What the contract of engines is about: its kinds, what each of them cannot do, and how each is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from backends.base import Endpoint, Engine
from backends.flows import Stream
from backends.openai import AsyncTransport, ChatRequest
from backends.python.links import LoopLink
from backends.python.worker_calls import WorkerCalls
from budget.footprint import Placement

Feature = str
"""A point of the contract: a key of `FEATURES`."""
FEATURES: Final[Mapping[Feature, str]] = {
    "close": "a stream that is closed ends its generation",
    "queue": "requests beyond its slots wait in it",
    "cancel": "a start that is cancelled leaves nothing",
    "usage": "usage",
    "timings": "timings",
    "seed": "`seed`",
    "stop": "`stop`",
    "json_schema": "`json_schema`",
    "grammar": "`grammar`",
    "tools": "`tools`",
    "too_long": "a prompt that is too long: both numbers",
    "memory": "its bytes are measured",
    "death": "its death is seen",
    "log": "its last lines are quoted",
    "kv": "KV state is saved and restored",
}
"""The points of the contract beside the verbs, in words."""
_NO_CHAT: Final = (
    *("usage", "timings", "seed", "stop", "json_schema", "grammar", "tools", "too_long"),
)
_FAR: Final[Mapping[Feature, str]] = {
    **dict.fromkeys(("memory", "log", "cancel"), "runs elsewhere"),
    **dict.fromkeys(("grammar", "kv"), "no"),
}
CANNOT: Final[Mapping[str, Mapping[Feature, str]]] = {
    "llama.cpp": {},
    "llama-cpp-python": {"tools": "no", "kv": "no"},
    "python": {**dict.fromkeys(_NO_CHAT, "no"), "kv": "no"},
    "server": {"grammar": "no", "kv": "no"},
    "vllm here": {"timings": "no", "grammar": "no", "kv": "no"},
    "vllm": {**_FAR, "timings": "no"},
    "ollama": {**_FAR, "too_long": "no: it cuts a chat"},
    "openai": _FAR,
    "scripted": dict.fromkeys(
        ("seed", "stop", "json_schema", "grammar", "too_long"), "by its script"
    ),
}
"""What each kind does not do, in the words of the documentation's table. The suite tests that, too."""


class Talk(Protocol):
    """How engines of a kind are asked for so many tokens."""

    async def whole(self, endpoint: Endpoint, tokens: int) -> str:
        """The text of an answer that comes at once."""
        ...

    async def stream(self, endpoint: Endpoint, tokens: int) -> Stream[Any]:
        """An answer that comes in pieces."""
        ...

    def text(self, piece: Any) -> str:
        """The text of a piece."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Chats:
    """By OpenAI's protocol."""

    def __init__(self) -> None:
        self.client = AsyncTransport()

    @staticmethod
    def _request(tokens: int) -> ChatRequest:
        options = {"max_tokens": tokens, "temperature": 0.0, "seed": 1}
        return ChatRequest("Go on.", {**options, "extra": {"ignore_eos": True}})

    async def whole(self, endpoint: Endpoint, tokens: int) -> str:
        """A chat."""
        return (await self.client.chat(endpoint, self._request(tokens))).content

    async def stream(self, endpoint: Endpoint, tokens: int) -> Stream[Any]:
        """The pieces of a chat."""
        return await self.client.stream(endpoint, self._request(tokens))

    def text(self, piece: Any) -> str:
        """What a piece adds to the content."""
        return str(piece.content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()


class Calls:
    """By calls of a Python model that says as many words as it is asked for."""

    def __init__(self) -> None:
        self.client = WorkerCalls(LoopLink)

    async def whole(self, endpoint: Endpoint, tokens: int) -> str:
        """The items of the generator at once."""
        return "".join(await self.client.call(endpoint, {"n": tokens}))

    async def stream(self, endpoint: Endpoint, tokens: int) -> Stream[Any]:
        """The items as they come."""
        return await self.client.stream(endpoint, {"n": tokens})

    def text(self, piece: Any) -> str:
        """An item is a word."""
        return str(piece)

    async def aclose(self) -> None:
        """Each call had a connection of its own."""


@dataclass(frozen=True)
class Case:
    """One kind of engine under the contract.

    Attributes:
        name: as in a test's id, and over a column of the documentation's table.
        make: makes an engine that is not started.
        busy: how many requests it works on now.
        local: whether keepwarm runs it, and so weighs and watches it.
        talk: how it is asked.
        slots: how many requests it works on at the same time; None for as many as there are.
        long: a number of tokens that an answer has not reached when a test looks at it.
        placed: how it is started.
        crash: ends its processes as a crash would.
        bury: removes what a crash left, so that the next engine finds a server.
    """

    name: str
    make: Callable[[Path], Engine]
    busy: Callable[[Engine], Awaitable[int]]
    placed: Placement
    local: bool = True
    talk: type[Chats] | type[Calls] = Chats
    slots: int | None = 1
    long: int = 4000
    crash: Callable[[Engine], None] = lambda engine: engine.kill()
    bury: Callable[[], None] = lambda: None

    def can(self, feature: Feature) -> bool:
        """Whether it does what the contract asks for."""
        assert feature in FEATURES
        return feature not in CANNOT[self.name]

    @property
    def chats(self) -> bool:
        """Whether it takes chats at all."""
        return self.talk is Chats


Question = Callable[[Engine, AsyncTransport], Coroutine[Any, Any, None]]


class Running:
    """An engine of a kind that runs while the tests of a file put questions to it."""

    def __init__(self, case: Case, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.case = case
        self.engine = engine
        self.talk: Talk = case.talk()
        self.client = AsyncTransport()
        self._loop = loop

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return self.engine.endpoint

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for something on the loop of the engine."""
        self._loop.run_until_complete(work)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.talk.aclose()
        await self.client.aclose()


KINDS: Final = [
    pytest.param("llama.cpp", marks=pytest.mark.real),
    pytest.param("llama-cpp-python", marks=pytest.mark.real),
    "python",
    pytest.param("server", marks=pytest.mark.real),
    pytest.param("vllm here", marks=pytest.mark.vllm, id="vllm-here"),
    pytest.param("vllm", marks=pytest.mark.vllm),
    "ollama",
    pytest.param("openai", marks=pytest.mark.real),
    "scripted",
]
"""Every kind of engine, and the public fake."""
