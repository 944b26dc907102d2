"""A resolver of names that does not answer holds up no call, no event loop and no end of a process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import AsyncTransport, SyncTransport, Timeouts
from backends.openai.connections.resolving import MOST_THREADS, RESOLVER
from budget.errors import DeadlineExceeded, EndpointUnavailable
from tests.engines.hostile import ASK, ask, head, listening, says
from tests.processes import wait_until

BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
ANSWER = head() + b'{"choices":[{"message":{"content":"a"}}]}'


class Names:
    """The system's resolver while a test decides when it answers."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []
        self.addresses = ["127.0.0.1"]
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *rest: Any, **options: Any) -> list[Any]:
        """As `socket.getaddrinfo`; names of `.test` are answered when the test says so."""
        if not str(host).endswith(".test"):
            return self._real(host, port, *rest, **options)
        self.asked.append(str(host))
        assert self.answers.wait(60)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A resolver that does not answer before `names.answers` is set."""
    resolver = Names()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.answers.set()
    assert wait_until(lambda: not RESOLVER._asked)


def named(endpoint: Endpoint, host: str = "models.test") -> Endpoint:
    """The endpoint under a name."""
    return replace(endpoint, base_url=endpoint.base_url.replace("127.0.0.1", host))


ELSEWHERE = Endpoint("http://models.test:1", "m", "openai")


@BOTH
def test_a_silent_resolver_is_bounded_as_connecting_is(names: Names, *, is_async: bool) -> None:
    """The error says that it is the resolver, of which name; the loop's end waits for no thread."""
    with pytest.raises(
        EndpointUnavailable, match=r"resolver did not say .* models\.test"
    ) as caught:
        ask("chat", ELSEWHERE, Timeouts(connect_s=0.05), is_async=is_async)
    assert caught.value.facts["host"] == "models.test"
    assert not names.answers.is_set()


@BOTH
def test_a_silent_resolver_is_bounded_by_the_deadline(names: Names, *, is_async: bool) -> None:
    """Whatever the time for connecting is."""
    with pytest.raises(DeadlineExceeded):
        ask("chat", ELSEWHERE, deadline=time.monotonic() + 0.05, is_async=is_async)
    assert not names.answers.is_set()


@BOTH
def test_a_name_that_is_found_is_connected_to(names: Names, *, is_async: bool) -> None:
    """At the first of its addresses that takes a connection."""
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    names.answers.set()
    with listening(says(ANSWER)) as endpoint:
        assert ask("chat", named(endpoint), is_async=is_async).content == "a"


@BOTH
def test_a_name_that_does_not_exist_is_an_endpoint_that_is_not_there(
    names: Names, *, is_async: bool
) -> None:
    """In the resolver's words."""
    names.addresses = []
    names.answers.set()
    with pytest.raises(EndpointUnavailable, match="Name or service not known"):
        ask("chat", ELSEWHERE, is_async=is_async)


def test_calls_that_give_up_share_one_thread_a_name(names: Names) -> None:
    """A name is asked once at a time, and the call that gives up first cancels nothing for the others."""
    names_before = threading.active_count()
    for _ in range(5):
        with pytest.raises(EndpointUnavailable):
            SyncTransport(Timeouts(connect_s=0.01)).chat(ELSEWHERE, ASK)
    assert names.asked == ["models.test"]
    assert threading.active_count() == names_before + 1

    async def calls() -> str:
        with listening(says(ANSWER)) as endpoint:
            patient = asyncio.create_task(AsyncTransport().chat(named(endpoint, "b.test"), ASK))
            with pytest.raises(EndpointUnavailable):
                await AsyncTransport(Timeouts(connect_s=0.01)).chat(named(endpoint, "b.test"), ASK)
            names.answers.set()
            return (await patient).content

    assert asyncio.run(calls()) == "a"
    assert names.asked == ["models.test", "b.test"]


def test_threads_of_a_silent_resolver_are_few(names: Names) -> None:
    """However many names are asked; all are answered in the end."""
    before = threading.active_count()
    client = SyncTransport(Timeouts(connect_s=0.01))
    for number in range(MOST_THREADS + 4):
        at = replace(ELSEWHERE, base_url=f"http://m{number}.test:1")
        with pytest.raises(EndpointUnavailable):
            client.chat(at, ASK)
    assert threading.active_count() == before + MOST_THREADS
    names.answers.set()
    assert wait_until(lambda: not RESOLVER._asked)
    assert len(names.asked) == MOST_THREADS + 4
