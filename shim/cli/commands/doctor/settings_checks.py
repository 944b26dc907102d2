"""What the doctor says of settings: the configuration, variables, proxies and certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.request import getproxies

from backends.base import Endpoint, shown_url
from backends.openai.connections.connecting import pool_settings, proxy_url
from budget.errors import KeepwarmError
from shim.cli.commands.config.command import check_report
from shim.cli.commands.doctor.finding import Check, Finding, error_found
from shim.config import Config

HUB: Final = "https://huggingface.co"
_OTHER_AUTHORITIES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def configuration_check(path: Path | None) -> Check:
    """A check of the configuration: what `keepwarm config check` says of it."""

    def check_configuration(_: Config) -> Iterator[Finding]:
        report = check_report(path)
        for problem in report["problems"]:
            todo = "Mend it; `keepwarm config check` lists all of them."
            yield Finding("configuration", "bad", problem["message"], todo)
        for warning in report["warnings"]:
            yield Finding("configuration", "warn", warning)
        if report["ok"] and not report["models"]:
            where = f"in {report['file']}" if report["file"] else "and there is no keepwarm.toml"
            todo = (
                "Write a keepwarm.toml with [models.NAME] path = ..., or name files by their path."
            )
            yield Finding("configuration", "warn", f"no model is configured {where}", todo)
        elif report["ok"]:
            text = f"{report['file'] or 'HARNESS_ENDPOINTS'}, {len(report['models'])} models"
            yield Finding("configuration", "ok", text, facts={"file": report["file"]})

    return check_configuration


def check_proxies(config: Config) -> Iterator[Finding]:
    """Whether the proxies that the environment names can be used, and for which addresses they are."""
    named = {kind: url for kind, url in getproxies().items() if kind != "no"}
    if not named:
        yield Finding("proxies", "ok", "the environment names none")
        return
    shown = ", ".join(f"{kind} {shown_url(url)}" for kind, url in sorted(named.items()))
    urls = [entry.url for entry in config.models.values() if entry.url is not None]
    hub = [HUB] if any(entry.hf for entry in config.models.values()) else []
    used = [url for url in dict.fromkeys([*urls, *hub]) if proxy_url(url)]
    try:
        for url in used or [HUB]:
            pool_settings(Endpoint(url, "doctor", "openai"))
    except KeepwarmError as error:
        yield error_found("proxies", error)
        return
    through = ", ".join(map(shown_url, used)) or "no address of this configuration"
    yield Finding("proxies", "ok", f"{shown}; used for {through}")


def check_certificates(_: Config) -> Iterator[Finding]:
    """Whether the certificates that the environment names can be read."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file or folder:
        named = " and ".join(name for name in (file, folder) if name)
        try:
            ssl.create_default_context(cafile=file or None, capath=folder or None)
        except (OSError, ssl.SSLError) as error:
            why = error.strerror or str(error)
            todo = "Set $SSL_CERT_FILE to a file of certificates (PEM), or unset it."
            yield Finding("certificates", "bad", f"{named} cannot be read: {why}", todo)
        else:
            yield Finding("certificates", "ok", named)
    for name in _OTHER_AUTHORITIES:
        if os.environ.get(name) and not file:
            todo = f"Set $SSL_CERT_FILE to {os.environ[name]} as well."
            yield Finding("certificates", "warn", f"${name} is not read by keepwarm", todo)
    if not (file or folder):
        yield Finding("certificates", "ok", "the authorities that come with keepwarm (certifi)")
