"""What one request is, whichever client sends it: bytes, headers, time-outs, and what errors mean."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from backends.base import Endpoint
from backends.openai.answers import broken, error_from_answer, error_in_stream, refused, too_slow
from backends.openai.sse import SseParser
from backends.openai.wire import Delta, decode, parse_chunk
from budget.errors import ConfigError, KeepwarmError

CHAT_PATH = "/v1/chat/completions"
EMBED_PATH = "/v1/embeddings"

KEEP_ALIVE_S = 4.0
"""Idle connections are dropped after this; llama-server drops them after 5 s without saying so."""

MAX_IDLE_CONNECTIONS = 16
_CONNECT_RETRIES = 2
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_NO_ANSWER = "without sending a response"


def dead_sockets(keys: Iterable[str]) -> list[str]:
    """Those pool keys that are Unix sockets which are gone: their engines have ended for good."""
    return [key for key in keys if key.startswith("/") and not os.path.exists(key)]  # noqa: PTH110


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until a request is given up, by phase; None waits for ever.

    `first_byte_s` covers queueing and prompt evaluation of a streamed answer, `answer_s` a full one.
    A remote endpoint may send its headers before its first token, so there the wait between tokens
    is the larger of `first_byte_s` and `between_tokens_s`.
    """

    connect_s: float | None = 5.0
    first_byte_s: float | None = 600.0
    between_tokens_s: float | None = 120.0
    answer_s: float | None = 1800.0


@dataclass(slots=True)
class Route:
    """What all requests to one endpoint share, made once: URLs and headers."""

    urls: dict[str, httpx.URL]
    headers: list[tuple[bytes, bytes]]

    @classmethod
    def to(cls, endpoint: Endpoint) -> Route:
        """The route of an endpoint."""
        base = endpoint.base_url.rstrip("/")
        url = httpx.URL(base)
        urls = {path: httpx.URL(base + path) for path in (CHAT_PATH, EMBED_PATH)}
        headers = [
            (b"Host", url.netloc),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"keepwarm"),
            (b"Content-Type", b"application/json"),
        ]
        return cls(urls, headers)

    def url(self, endpoint: Endpoint, path: str) -> httpx.URL:
        """The URL of a path at the endpoint."""
        known = self.urls.get(path)
        return known or httpx.URL(endpoint.base_url.rstrip("/") + path)


def transport_settings(endpoint: Endpoint) -> dict[str, Any]:
    """Keyword arguments of httpx's transports for this endpoint.

    A Unix socket never goes through a proxy; a remote URL does when the environment names one.
    """
    limits = httpx.Limits(
        max_connections=None,
        max_keepalive_connections=MAX_IDLE_CONNECTIONS,
        keepalive_expiry=KEEP_ALIVE_S,
    )
    settings: dict[str, Any] = {"limits": limits, "trust_env": False}
    settings["verify"] = _tls_context(needed=endpoint.base_url.startswith("https:"))
    if endpoint.socket_path is not None:
        return settings | {"uds": endpoint.socket_path}
    return settings | {"retries": _CONNECT_RETRIES, "proxy": _proxy(endpoint.base_url)}


@functools.cache
def _tls_context(*, needed: bool) -> ssl.SSLContext:
    """One context for all transports: reading the authorities takes tens of milliseconds.

    An engine's socket needs none of them, and a swap would pay for them every time.
    """
    return (
        httpx.create_ssl_context(trust_env=False)
        if needed
        else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def pool_key(endpoint: Endpoint) -> str:
    """What connections may be shared by: the socket, or the base URL."""
    return endpoint.socket_path or endpoint.base_url


def api_key(endpoint: Endpoint) -> str:
    """The endpoint's key from the environment, read now; empty when it needs none.

    Raises:
        ConfigError: the variable is not set, or its value cannot be sent in a header.
    """
    if endpoint.api_key_env is None:
        return ""
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{endpoint.model_id} needs an API key, and ${endpoint.api_key_env} is not set.",
            hint=f"Export {endpoint.api_key_env}, or take api_key_env out of the configuration.",
            variable=endpoint.api_key_env,
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the API key in ${endpoint.api_key_env} holds characters that no header can carry.",
            variable=endpoint.api_key_env,
        )
    return key


class Exchange:
    """One request to one endpoint, through its attempts.

    Only attempts that failed on a reused connection before any byte of an answer are repeated: a
    server closes idle connections without saying so, and such a request was never read.
    """

    def __init__(
        self, endpoint: Endpoint, route: Route, path: str, body: bytes, timeouts: Timeouts
    ) -> None:
        self.endpoint = endpoint
        self.timeouts = timeouts
        self._route = route
        self._path = path
        self._body = body
        self._key = api_key(endpoint)
        self._attempts = 0
        self._connected = False
        self._phase_s: dict[str, float | None] = {}

    def request(self, read_s: float | None, *, is_async: bool) -> httpx.Request:
        """The request of the next attempt."""
        self._attempts += 1
        self._connected = False
        headers = [*self._route.headers, (b"Content-Length", str(len(self._body)).encode())]
        if self._key:
            headers.append((b"Authorization", f"Bearer {self._key}".encode()))
        connect_s = self.timeouts.connect_s
        self._phase_s = {"connect": connect_s, "read": read_s, "write": read_s, "pool": connect_s}
        watch = self._watch_async if is_async else self._watch
        return httpx.Request(
            "POST",
            self._route.url(self.endpoint, self._path),
            headers=headers,
            stream=httpx.ByteStream(self._body),
            extensions={"timeout": self._phase_s, "trace": watch},
        )

    def _watch(self, event: str, _info: Any) -> None:
        if event.startswith("connection.connect"):
            self._connected = True

    async def _watch_async(self, event: str, _info: Any) -> None:
        if event.startswith("connection.connect"):
            self._connected = True

    def may_retry(self, error: httpx.HTTPError) -> bool:
        """Whether this failure before an answer was a stale connection's."""
        if self._connected or self._attempts > MAX_IDLE_CONNECTIONS + 1:
            return False
        if isinstance(error, httpx.RemoteProtocolError):
            return _NO_ANSWER in str(error)
        return isinstance(error, _STALE)

    def answering(self) -> None:
        """The headers of a streamed answer are here: from now on tokens follow each other."""
        waits = (self.timeouts.between_tokens_s, self.timeouts.first_byte_s)
        if self.endpoint.socket_path is not None:
            self._phase_s["read"] = waits[0]
        elif None not in waits:
            self._phase_s["read"] = max(w for w in waits if w is not None)

    def failed(self, error: httpx.HTTPError, *, in_answer: bool = False) -> KeepwarmError:
        """What a failure of the connection means."""
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            return too_slow(self.endpoint, "connecting", self.timeouts.connect_s)
        if isinstance(error, httpx.TimeoutException):
            what = "the next token" if in_answer else "the answer"
            return too_slow(self.endpoint, what, self._phase_s["read"])
        if in_answer:
            return broken(self.endpoint, reason)
        return refused(self.endpoint, reason)

    def refusal(self, status: int, body: bytes) -> KeepwarmError:
        """What an answer with a status other than 200 means."""
        return error_from_answer(self.endpoint, status, body, self._key)

    def reader(self, kind: ReaderKind) -> StreamReader:
        """A reader for the body of this request's streamed answer."""
        return kind(self.endpoint, self._key)


class StreamReader:
    """Bytes of a streamed answer in, deltas out; `done` once the stream has said `[DONE]`."""

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint = endpoint
        self._key = key
        self._parser = SseParser()
        self.done = False

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas that these bytes complete.

        Raises:
            KeepwarmError: the stream carries an error, or is not of this protocol.
        """
        deltas: list[Delta] = []
        for data in self._parser.feed(chunk):
            if data == b"[DONE]":
                self.done = True
                break
            value = decode(data)
            if "error" in value:
                raise error_in_stream(self._endpoint, value, self._key)
            deltas.append(parse_chunk(value))
        return deltas

    def ended(self) -> None:
        """The body is at its end.

        Raises:
            EngineDied: a local engine stopped without `[DONE]`.
            EndpointUnavailable: a remote endpoint did.
        """
        if not self.done:
            raise broken(self._endpoint, "the stream ended without [DONE]")


ReaderKind = Callable[[Endpoint, str], StreamReader]
"""Makes a reader of an endpoint and its key."""
