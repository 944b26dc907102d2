"""One HTTP request, the same for all clients: bytes, headers, bounds, and the meaning of errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import httpcore

from backends.base import Endpoint
from backends.machine.files.descriptors import no_more_files
from backends.openai.answers.foreign_errors import (
    Heard,
    broken,
    error_from_answer,
    error_in_answer,
    found_error,
    refused,
    seconds_to_wait,
    unreadable,
)
from backends.openai.connections.bounds import Bounds
from backends.openai.connections.connecting import (
    CONNECT_PAUSES_S,
    MAX_IDLE_CONNECTIONS,
    Address,
    proxy_url,
)
from backends.openai.connections.proxies import proxy_for
from backends.openai.masking import NO_SECRETS, Secrets
from backends.openai.protocol import decode
from budget.errors import ConfigError, EndpointError, KeepwarmError

CHAT_PATH: Final = "/v1/chat/completions"
EMBED_PATH: Final = "/v1/embeddings"
JSON_TYPE: Final = b"application/json"

Headers = list[tuple[bytes, bytes]]

HTTP_ERRORS: Final = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""The errors of a failed connection."""

_Parsed = TypeVar("_Parsed")
_STALE = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)
STALE_S: Final = 5.0
"""A connection that was closed while it was idle breaks sooner than this after a request is sent."""
_NO_ANSWER = "without sending a response"


@dataclass(frozen=True, slots=True)
class Route:
    """The part that all requests to one endpoint share, made once: URLs and headers.

    `secret_urls` are addresses that the endpoint or a proxy gets to see, and that may hold secrets.
    `is_known` is that of its endpoint.
    """

    address: Address
    urls: dict[str, httpcore.URL]
    headers: Headers
    secret_urls: tuple[str, ...]
    is_known: bool

    @classmethod
    def to(cls, endpoint: Endpoint) -> Route:
        """The route of an endpoint.

        Raises:
            ConfigError: its URL cannot be used.
        """
        address = Address.of(endpoint.base_url)
        headers = [
            (b"Host", address.netloc),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"keepwarm"),
        ]
        seen = () if endpoint.is_ours else (endpoint.base_url, proxy_url(endpoint.base_url) or "")
        return cls(address, {}, headers, seen, endpoint.is_known)

    def url(self, path: str) -> httpcore.URL:
        """The URL of a path at the endpoint, kept in `urls`."""
        self.urls[path] = self.address.url(path)
        return self.urls[path]


def api_key(endpoint: Endpoint) -> str:
    """The key of an endpoint, from its file or the environment, read now; empty where it needs none.

    Raises:
        ConfigError: the variable is not set, or its value cannot be sent in a header.
    """
    if endpoint.key_file is not None:
        return _key_in(Path(endpoint.key_file))
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


def _key_in(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""  # the server has ended, which the connection will say


def secrets_of(endpoint: Endpoint) -> Secrets:
    """The secrets of an endpoint, which its answers may repeat and which must be masked."""
    if endpoint.is_ours:
        return Secrets.of(api_key(endpoint)) if endpoint.key_file else NO_SECRETS
    key = os.environ.get(endpoint.api_key_env, "").strip() if endpoint.api_key_env else ""
    return Secrets.of(key, endpoint.base_url, proxy_url(endpoint.base_url) or "")


@dataclass(slots=True)
class Exchange:
    """One request to one endpoint, through its attempts.

    Connecting to a URL is tried again after a pause. Beside that only attempts that failed soon on a
    reused connection, before any byte of an answer, are repeated: a server closes idle connections
    without saying so, and such a request was never read. What breaks later may have been worked on.

    Args:
        endpoint: where it goes.
        route: the endpoint's URLs and headers.
        path: what is asked.
        body: what is sent; None asks with GET.
        bounds: what it may cost.
        content_type: that of the body.
    """

    endpoint: Endpoint
    route: Route
    path: str
    body: bytes | None
    bounds: Bounds
    content_type: bytes = JSON_TYPE
    secrets: Secrets = NO_SECRETS
    told_to_wait: bool = False
    _key: str = ""
    _attempts: int = 0
    _began_s: float = 0.0

    def read_key(self) -> None:
        """Read the key of an endpoint that may need one, and note what its answers must not repeat."""
        self._key = api_key(self.endpoint)
        if self._key or self.route.secret_urls:
            self.secrets = Secrets.of(self._key, *self.route.secret_urls)

    def request(self) -> httpcore.Request:
        """The request of the next attempt."""
        self._attempts += 1
        self._began_s = time.monotonic()
        bounds = self.bounds
        bounds.opened = None
        headers = [*self.route.headers]
        if self.body is not None:
            headers.append((b"Content-Type", self.content_type))
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        if self._key:
            headers.append((b"Authorization", b"Bearer " + self._key.encode()))
        limits = {"connect": bounds, "read": bounds, "write": bounds}
        return httpcore.Request(
            b"GET" if self.body is None else b"POST",
            self.route.urls.get(self.path) or self.route.url(self.path),
            headers=headers,
            content=self.body,
            extensions={"timeout": limits},
        )

    def _may_retry(self, error: Exception) -> bool:
        """Whether this failure before an answer was a stale connection's."""
        if self.bounds.opened is not None or self._attempts > MAX_IDLE_CONNECTIONS + 1:
            return False
        if time.monotonic() - self._began_s > STALE_S:
            return False
        if isinstance(error, httpcore.RemoteProtocolError):
            return _NO_ANSWER in str(error)
        return isinstance(error, _STALE)

    def pause_s(self, error: Exception) -> float | None:
        """How long to wait before the next attempt after this failure; None when there is none."""
        if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
            if self.endpoint.is_ours or self._attempts > len(CONNECT_PAUSES_S):
                return None
            return min(CONNECT_PAUSES_S[self._attempts - 1], self.bounds.left_s())
        return 0.0 if self._may_retry(error) else None

    def failed(self, error: Exception, *, in_answer: bool = False, text: str = "") -> KeepwarmError:
        """The error for a failed connection; `text` is the part of a stream that had come."""
        if (full := no_more_files(error)) is not None:
            return full
        reason = self.secrets.quote(str(error)).rstrip(".") or type(error).__name__
        if isinstance(error, httpcore.ConnectTimeout):
            return self.bounds.connecting_expired()
        if isinstance(error, httpcore.TimeoutException):
            return self.bounds.expired()
        if in_answer:
            return broken(self.endpoint, reason, text)
        if isinstance(error, httpcore.RemoteProtocolError) and _NO_ANSWER not in reason:
            return EndpointError(f"{self.endpoint.place} sent no answer of HTTP: {reason}.")
        failure = refused(self.endpoint, reason + self._through())
        failure.facts["reached"] = not isinstance(error, httpcore.ConnectError)
        return failure

    def _through(self) -> str:
        """The proxy that a failed connection went to, for its error."""
        proxy = None if self.endpoint.is_ours else proxy_for(self.endpoint.base_url)
        return f" (through {proxy.shown})" if proxy is not None else ""

    def refusal(self, status: int, headers: Headers, body: bytes) -> KeepwarmError:
        """What an answer with a status other than 200 means."""
        url = self.route.url(self.path)
        heard = Heard(
            asked=f"{url.scheme.decode()}://{self.route.address.netloc.decode()}{url.target.decode()}",
            location=header(headers, b"location"),
            retry_after_s=seconds_to_wait(header(headers, b"retry-after"), time.time()),
        )
        return error_from_answer(self.endpoint, status, body, self.secrets, heard)

    def parsed(
        self,
        raw: bytes,
        parse: Callable[[Mapping[str, Any]], _Parsed],
        read: Callable[[bytes], Mapping[str, Any]] = decode,
    ) -> _Parsed:
        """The parsed value of a whole answer of status 200.

        Raises:
            KeepwarmError: it says that something went wrong, or is not of the protocol.
        """
        try:
            answer = read(raw)
            found = found_error(answer)
            if found is None:
                return parse(answer)
            failure = error_in_answer(self.endpoint, found, self.secrets)
        except EndpointError as exc:
            failure = unreadable(self.endpoint, exc, raw, self.secrets)
        self.secrets.clean(failure)
        raise failure

    def encoded(self, encoding: str) -> EndpointError:
        """An answer that is compressed, although `identity` was asked for: its size has no bound."""
        name = self.secrets.quote(encoding, 40)
        return EndpointError(
            f"{self.endpoint.place} encoded its answer as {name!r}, though identity was asked for.",
            hint="Turn off compression for this path at the endpoint or at the proxy before it.",
            content_encoding=name,
        )


def header(headers: Headers, name: bytes) -> str:
    """A header's value; empty when it is not there."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1").strip()
    return ""
