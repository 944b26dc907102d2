"""Settings of connections to an endpoint: TLS, proxies, pools, URLs."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore

from backends.base import Endpoint
from budget.errors import ConfigError

KEEP_ALIVE_S: Final = 4.0
"""Idle connections are dropped after this; llama-server drops them after 5 s without saying so."""

MAX_IDLE_CONNECTIONS: Final = 16
CONNECT_PAUSES_S: Final = (0.0, 0.5)
"""Pauses before further attempts to connect to a URL, because a server may be about to start."""
_CHAT: Final = "/chat/completions"
_VERSIONED: Final = re.compile(r"/v\d+\w*(/openai)?$")
"""Ends of a base URL that names its version itself: `/v4`, `/v1beta/openai`."""
_PATH_CHARACTERS: Final = "/%!$&'()*+,;=:@~-._"


def dead_sockets(keys: Iterable[str]) -> list[str]:
    """The pool keys of Unix sockets that are gone, because their engines have ended for good."""
    return [key for key in keys if key.startswith("/") and not os.path.exists(key)]  # noqa: PTH110


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, taken apart once."""

    scheme: bytes
    host: bytes
    port: int | None
    path: str

    @classmethod
    def of(cls, base_url: str) -> Address:
        """The address of a base URL.

        Raises:
            ConfigError: it is none.
        """
        try:
            parts = urlsplit(base_url)
            host = (parts.hostname or "").encode("idna")
            address = cls(parts.scheme.encode(), host, parts.port, parts.path.rstrip("/"))
        except ValueError as exc:
            raise ConfigError(f"an endpoint's url cannot be used: {exc}.") from None
        if address.scheme not in {b"http", b"https"} or not address.host:
            raise ConfigError("an endpoint's url is not an http or https address.")
        return address

    @property
    def netloc(self) -> bytes:
        """The value of the `Host` header."""
        host = b"[%b]" % self.host if b":" in self.host else self.host
        return host if self.port is None else b"%b:%d" % (host, self.port)

    def url(self, path: str) -> httpcore.URL:
        """The URL of a path below it; `/v1` is left out where the base URL says where the API is."""
        root = self.path.removesuffix(_CHAT)
        if root != self.path or _VERSIONED.search(root):
            path = path.removeprefix("/v1")
        target = quote(root + path, safe=_PATH_CHARACTERS).encode()
        return httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=target)


def pool_settings(endpoint: Endpoint) -> dict[str, Any]:
    """Keyword arguments of httpcore's pools for this endpoint.

    A Unix socket never goes through a proxy; a remote URL does when the environment names one.

    Raises:
        ConfigError: the environment names a proxy that cannot be used.
    """
    settings: dict[str, Any] = {
        "ssl_context": _tls_context(needed=endpoint.base_url.startswith("https:")),
        "max_connections": None,
        "max_keepalive_connections": MAX_IDLE_CONNECTIONS,
        "keepalive_expiry": KEEP_ALIVE_S,
    }
    if endpoint.socket_path is not None:
        return settings | {"uds": endpoint.socket_path}
    return settings | {"proxy": _proxy(endpoint.base_url)}


@functools.cache
def _tls_context(*, needed: bool) -> ssl.SSLContext:
    """The TLS context for all pools, made once, because reading the authorities takes tens of milliseconds.

    An engine's socket gets a context without them, so that a swap does not pay for them.
    """
    if needed:
        return ssl.create_default_context(cafile=certifi.where())
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def proxy_url(base_url: str) -> str | None:
    """The proxy that the environment names for an address; None for loopback and exceptions."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
    except ValueError:
        return None
    if host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _proxy(base_url: str) -> httpcore.Proxy | None:
    given = proxy_url(base_url)
    if not given:
        return None
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        scheme, host, port = parts.scheme, (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        scheme, host, port = "", b"", None
    if scheme not in {"http", "https", "socks5", "socks5h"} or not host:
        raise ConfigError(
            "the proxy that the environment names cannot be used.",
            hint="Allowed is http://HOST:PORT (or https, socks5) in http_proxy, https_proxy or all_proxy.",
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigError(
            "the environment names a SOCKS proxy, and the package socksio is not installed.",
            hint="Install socksio, or name an http proxy.",
        )
    user = None
    if parts.username is not None:
        user = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    url = httpcore.URL(scheme=scheme.encode(), host=host, port=port, target=b"/")
    context = _tls_context(needed=True) if scheme == "https" else None
    return httpcore.Proxy(url, auth=user, ssl_context=context)
