"""Proxies and certificates of the environment: which one is used, and what the errors name."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Endpoint
from backends.openai import exchange
from backends.openai.connections.connecting import pool_settings
from backends.openai.connections.proxies import connection_proxy, proxy_for
from budget.errors import ConfigError, EndpointUnavailable, KeepwarmError
from shim import Shim
from shim.config import Config
from tests.engines.hostile import ask, head, listening, read_request

ANSWER = head() + b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}'
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies and certificates."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUEST_METHOD", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, "https_proxy"),
        ({"all_proxy": "http://p:1", "http_proxy": "http://other:1"}, "all_proxy"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://p:1"}, None),
        ({"http_proxy": "http://p:1"}, None),
    ],
)
def test_a_proxy_comes_with_the_variable_that_names_it(
    variables: dict[str, str], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower case first; an empty one means none."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for("https://far")
    assert (found.variable if found else None) == variable


def test_a_web_servers_header_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """CGI hands `Proxy:` of a request over as HTTP_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://attacker:1")
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy_for("http://far") is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("fd00::/8", "http://[fd00::1]:8000", True),
        ("192.168.1.7", "http://192.168.1.7:8000", True),
        ("lab.example", "http://gpu.lab.example", True),
        (".lab.example", "http://lab.example", True),
        ("*.lab.example", "http://gpu.lab.example", True),
        ("lab.example", "http://mylab.example", False),
        ("gpu:8000", "http://gpu:8000", True),
        ("gpu:8000", "http://gpu:9000", False),
        ("[fd00::1]:8000", "http://[fd00::1]:8000", True),
        ("a, b  GPU", "http://gpu", True),
        ("*", "http://far", True),
        ("", "http://far", False),
        ("10.0.0.0/99", "http://10.0.0.1", False),
        ("", "http://127.8.8.8:1", True),
        ("", "http://[::1]:1", True),
        ("", "http://localhost", True),
        ("", "http://app.localhost", True),
    ],
)
def test_exceptions_are_names_addresses_networks_and_loopback(
    no_proxy: str, url: str, *, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As curl reads them, CIDR among them."""
    monkeypatch.setenv("http_proxy", "http://p:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_for(url) is None) == direct


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("socks://p:1080/", b"socks5"),
        ("socks5://p:1080", b"socks5"),
        ("socks5h://p:1080", b"socks5h"),
        ("p:3128", b"http"),
        ("https://p", b"https"),
    ],
)
def test_a_proxy_may_be_written_as_desktops_and_shells_write_it(
    value: str, scheme: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With socks of any spelling, or without a scheme."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("all_proxy", value)
    found = connection_proxy("http://far", TLS)
    assert found is not None
    assert (found.url.scheme, found.url.host) == (scheme, b"p")


@pytest.mark.parametrize(
    ("value", "said"),
    [("socks://u:secret@p:1", "socksio"), ("socks4://p:1", "cannot be used"), ("ftp://p", "used")],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by nothing that is secret."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigError, match=said) as caught:
        pool_settings(Endpoint("http://far", "m", "openai"))
    assert "$ALL_PROXY" in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its address and its variable, without its password."""
    monkeypatch.setattr(exchange, "CONNECT_PAUSES_S", ())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"me:proxy-secret@127.0.0.1:{port}")
    with pytest.raises(EndpointUnavailable) as caught:
        ask("chat", Endpoint("http://far.invalid", "m", "openai"))
    assert f"through the proxy http://127.0.0.1:{port} of $http_proxy" in caught.value.message
    assert "proxy-secret" not in repr(caught.value)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of its own for 127.0.0.1, with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=own", "-keyout", str(file), "-out"]
    command += [f"{file}.crt", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def _serves_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_own_authorities_come_from_the_environment_or_a_key(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, a company's certificate is refused as unknown."""
    context = _serves_tls(certificate)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            read_request(secure)
            secure.sendall(ANSWER)

    with listening(serve) as plain:
        far = replace(plain, base_url=plain.base_url.replace("http:", "https:"))
        monkeypatch.setattr(exchange, "CONNECT_PAUSES_S", ())
        with pytest.raises(KeepwarmError, match="certificate"):
            ask("chat", far)
        assert ask("chat", replace(far, ca_file=str(certificate))).content == "ok"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ask("chat", far).content == "ok"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable or by the key."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="ca_file") as caught:
        pool_settings(Endpoint("https://far", "m", "openai", ca_file=str(file)))
    assert caught.value.facts["file"] == str(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigError, match=r"\$SSL_CERT_FILE"):
        pool_settings(Endpoint("https://far", "m", "openai"))


def test_a_model_names_its_own_authorities(tmp_path: Path) -> None:
    """Relative to the configuration; a file that is not there is a mistake."""
    far = {"url": "https://far", "ca_file": "own.pem"}
    config = Config.from_mapping({"models": {"far": far}}, base=tmp_path)
    assert config.missing_files() == [("models.far.ca_file", tmp_path / "own.pem")]
    with Shim(config) as shim:
        assert shim._session.remote_endpoint("far").ca_file == str(tmp_path / "own.pem")
