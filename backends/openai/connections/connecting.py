"""Settings of connections to an endpoint: TLS, proxies, pools, URLs."""

from __future__ import annotations

import functools
import os
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import certifi
import httpcore

from backends.base import Endpoint
from backends.openai.connections.proxies import connection_proxy, proxy_for
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
        ConfigError: the environment names a proxy that cannot be used, or certificates cannot be read.
    """
    needed = endpoint.base_url.startswith("https:")
    settings: dict[str, Any] = {
        "ssl_context": _tls(endpoint.ca_file) if needed else _unused_tls(),
        "max_connections": None,
        "max_keepalive_connections": MAX_IDLE_CONNECTIONS,
        "keepalive_expiry": KEEP_ALIVE_S,
    }
    if endpoint.socket_path is not None:
        return settings | {"uds": endpoint.socket_path}
    if endpoint.is_ours:
        return settings
    proxy = proxy_for(endpoint.base_url)
    speaks_tls = proxy is not None and proxy.url.startswith("https:")
    tls = _tls(endpoint.ca_file) if speaks_tls else _unused_tls()
    return settings | {"proxy": connection_proxy(endpoint.base_url, tls)}


@functools.cache
def _unused_tls() -> ssl.SSLContext:
    """A context without authorities. An engine's socket gets it, so that a swap does not pay for them."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    """The TLS context for an endpoint: the authorities that the environment names, and its own file's."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return _tls_context(file or None, folder or None, ca_file)


@functools.lru_cache(maxsize=16)
def _tls_context(file: str | None, folder: str | None, own: str | None) -> ssl.SSLContext:
    """The context for these authorities, made once, because reading them takes tens of milliseconds.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate.
    """
    named = "$SSL_CERT_FILE" if file else "$SSL_CERT_DIR"
    try:
        given = file or (None if folder else certifi.where())
        context = ssl.create_default_context(cafile=given, capath=folder)
        named = "ca_file"
        if own is not None:
            context.load_verify_locations(cafile=own)
    except (OSError, ssl.SSLError) as error:
        place = own if named == "ca_file" else file or folder
        raise ConfigError(
            f"the certificates of {named} cannot be read: {place}: {error.strerror or error}.",
            hint="Give a file of certificates in PEM.",
            file=str(place),
        ) from None
    return context


def proxy_url(base_url: str) -> str | None:
    """The URL of the proxy for an address, as it was written; None where there is none."""
    named = proxy_for(base_url)
    return named.url if named is not None else None
