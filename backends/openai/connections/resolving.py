"""Looks up addresses of host names in threads of our own, so that a wait for a resolver has a bound.

`getaddrinfo` takes no time-out and cannot be interrupted. asyncio asks it on threads that it waits for when
the loop ends. The threads here are daemons, and at most `MOST_THREADS`: a call that waits for an answer may
give up, and the thread is left to the system's resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections import deque
from concurrent.futures import Future
from typing import Final

import httpcore

from backends.machine.callers_errors import raise_callers
from backends.machine.forks import renew_after_fork
from backends.openai.connections.bounds import Bounds
from budget.errors import EndpointUnavailable, KeepwarmError, QueueFull

MOST_THREADS: Final = 8

Name = tuple[str, int]
Addresses = list[str]


class Resolver:
    """Looks names up, each once at a time. Safe from any thread, and after `fork()`."""

    def __init__(self) -> None:
        self.forked()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._lock = threading.Lock()
        self._asked: dict[Name, Future[Addresses]] = {}
        self._waiting: deque[tuple[Name, Future[Addresses]]] = deque()
        self._threads = 0

    def find(self, name: Name, bounds: Bounds, limit_s: float) -> Addresses:
        """The addresses of a host, the preferred one first; this thread waits for them.

        Raises:
            EndpointUnavailable: the resolver did not answer within the limit.
            DeadlineExceeded: it did not answer before the call's deadline.
            httpcore.ConnectError: there is no such name.
        """
        if _is_address(name[0]):
            return [name[0]]
        asked = self._ask(name)
        try:
            return asked.result(limit_s)
        except OSError as exc:
            if asked.done() and asked.exception() is exc:
                raise httpcore.ConnectError(str(exc)) from exc
            raise_callers(exc)
            raise _not_answered(name, bounds, limit_s) from None

    async def afind(self, name: Name, bounds: Bounds, limit_s: float) -> Addresses:
        """As `find`, awaited."""
        if _is_address(name[0]):
            return [name[0]]
        asked = self._ask(name)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(asked)
        except OSError as exc:
            if asked.done() and asked.exception() is exc:
                raise httpcore.ConnectError(str(exc)) from exc
            raise_callers(exc)
            raise _not_answered(name, bounds, limit_s) from None

    def _ask(self, name: Name) -> Future[Addresses]:
        with self._lock:
            known = self._asked.get(name)
            if known is not None:
                return known
            if self._threads < MOST_THREADS:
                self._start_thread(name)
            asked: Future[Addresses] = Future()
            # A call that gives up its wait must not cancel the question of the others.
            asked.set_running_or_notify_cancel()
            self._waiting.append((name, asked))
            self._asked[name] = asked
        return asked

    def _start_thread(self, name: Name) -> None:
        try:
            threading.Thread(target=self._work, name="keepwarm-names", daemon=True).start()
        except RuntimeError as error:
            raise QueueFull(
                f"No thread could be started to look {name[0]} up: {error}.",
                hint="See the limits of processes and memory of this user (`ulimit -u`).",
            ) from error
        self._threads += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                name, asked = self._waiting.popleft()
            try:
                asked.set_result(_looked_up(name))
            except Exception as error:
                asked.set_exception(error)
            with self._lock:
                self._asked.pop(name, None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _looked_up(name: Name) -> Addresses:
    found = socket.getaddrinfo(*name, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _not_answered(name: Name, bounds: Bounds, limit_s: float) -> KeepwarmError:
    if limit_s < bounds.timeouts.connect_s:
        return bounds.expired()
    return EndpointUnavailable(
        f"{bounds.endpoint.place}: the system's resolver did not say within {limit_s:g} s where"
        f" {name[0]} is.",
        hint="See whether this machine's name servers can be reached, or give an address in the url.",
        host=name[0],
    )


RESOLVER: Final = Resolver()
