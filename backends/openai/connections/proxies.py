"""Which proxy the environment names for an address, and which addresses are reached without one.

The variables are those of curl and of Python: `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`, in
lower or upper case, the lower first.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

import httpcore

from budget.errors import ConfigError

_SCHEMES: Final[Mapping[str, str]] = {
    "http": "http",
    "https": "https",
    # GNOME writes it so; there is no other kind behind it.
    "socks": "socks5",
    "socks5": "socks5",
    "socks5h": "socks5h",
}
_SOCKS: Final = "socks5"


@dataclass(frozen=True, slots=True)
class NamedProxy:
    """A proxy as the environment names it: its URL, which may hold a password, and the variable."""

    url: str
    variable: str

    @property
    def shown(self) -> str:
        """The proxy in words, without user and password."""
        try:
            parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return f"the proxy of ${self.variable}"
        return f"the proxy {parts.scheme}://{parts.hostname or ''}{port} of ${self.variable}"


def proxy_for(base_url: str) -> NamedProxy | None:
    """The proxy for an address; None for loopback and for what `no_proxy` names."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if _is_loopback(host) or _is_excepted(host, port):
        return None
    for name in _names(f"{parts.scheme}_proxy"), _names("all_proxy"):
        variable = next((v for v in name if v in os.environ), None)
        if variable is not None and (url := os.environ[variable].strip()):
            return NamedProxy(url, variable)
    return None


def _names(variable: str) -> tuple[str, ...]:
    # A web server sets HTTP_PROXY from the header `Proxy:` of its client.
    is_foreign = variable == "http_proxy" and "REQUEST_METHOD" in os.environ
    return (variable,) if is_foreign else (variable, variable.upper())


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _is_excepted(host: str, port: int | None) -> bool:
    address = _address(host)
    for entry, its_port in _exceptions():
        if its_port is not None and its_port != port:
            continue
        if entry == "*":
            return True
        if address is None:
            name = entry.lstrip("*").lstrip(".")
            if name and (host == name or host.endswith(f".{name}")):
                return True
            continue
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except (ValueError, TypeError):
            continue
    return False


def _exceptions() -> Iterator[tuple[str, int | None]]:
    """The entries of `no_proxy`: a name, an address or a network, and a port where one is given."""
    given = next((os.environ[v] for v in _names("no_proxy") if v in os.environ), "")
    for entry in given.lower().replace(",", " ").split():
        name, colon, port = entry.rpartition(":")
        if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
            yield name.strip("[]"), int(port)
        else:
            yield entry.strip("[]"), None


def connection_proxy(base_url: str, tls: ssl.SSLContext) -> httpcore.Proxy | None:
    """The proxy for an address in the form of httpcore; `tls` is for one that speaks TLS itself.

    Raises:
        ConfigError: it cannot be used; the error names the variable.
    """
    named = proxy_for(base_url)
    if named is None:
        return None
    try:
        parts = urlsplit(named.url if "://" in named.url else f"http://{named.url}")
        scheme, host = _SCHEMES.get(parts.scheme, ""), (parts.hostname or "").encode("idna")
        port = parts.port
    except ValueError:
        scheme, host, port = "", b"", None
    if not scheme or not host:
        raise ConfigError(
            f"the proxy that ${named.variable} names cannot be used.",
            hint="Allowed is http://HOST:PORT, or https, socks, socks5 or socks5h in the place of http.",
            variable=named.variable,
        )
    if scheme.startswith(_SOCKS) and importlib.util.find_spec("socksio") is None:
        raise ConfigError(
            f"${named.variable} names a SOCKS proxy, and the package socksio is not installed.",
            hint="Install it (`pip install socksio`), or name an http proxy.",
            variable=named.variable,
        )
    user = None
    if parts.username is not None:
        user = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    url = httpcore.URL(scheme=scheme.encode(), host=host, port=port, target=b"/")
    return httpcore.Proxy(url, auth=user, ssl_context=tls if scheme == "https" else None)
