"""Secrets of a request, and the one function through which foreign text leaves the transport.

An endpoint's answer may repeat secrets: its key in a message, a header, a malformed line, a URL.
Errors, their facts and causes go to terminals, logs, traces and `runs.jsonl`, so every text in them is
masked here first, and cut only then: half a key is a secret too.
"""

from __future__ import annotations

import base64
import functools
import logging
import math
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from budget.errors import Fact, KeepwarmError

MASK: Final = "***"
SHORT_KEY: Final = 4
"""A key of fewer characters is masked as a whole word only, or else it would mask half of every text."""

MAX_QUOTED: Final = 300
_MIN_BASE64: Final = 8
_MAX_CHAIN: Final = 20


class Secrets:
    """The secrets of one endpoint, in every spelling in which a server may repeat them.

    These are: plainly, in upper or lower case; with any of its characters URL-encoded, or escaped as in
    JSON, Python or HTML; and inside base64 (`Authorization: Basic`). A server that wants to show a key in
    another way still can.
    """

    def __init__(self, *secrets: str) -> None:
        found = [_spellings(secret) for secret in sorted({*secrets} - {""}, key=len, reverse=True)]
        self._pattern = re.compile("|".join(found), re.IGNORECASE) if found else None

    def __repr__(self) -> str:
        return f"<Secrets {'some' if self._pattern else 'none'}>"

    @classmethod
    def of(cls, key: str, *urls: str) -> Secrets:
        """The secrets of a key and of URLs: user, password, values of their queries."""
        return _secrets(key, *urls)

    def mask(self, text: str) -> str:
        """The text with every secret replaced by `***`."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def quote(self, value: str | bytes, limit: int = MAX_QUOTED) -> str:
        """Foreign text for an error's message: masked, then cut, on one line, with nothing unprintable."""
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        words = " ".join(self.mask(text)[: 4 * limit].split())
        shown = "".join(c if c.isprintable() else "�" for c in words[:limit])
        return shown if len(words) <= limit else f"{shown.rstrip()} [...]"

    def clean(self, error: BaseException) -> None:
        """Take every secret out of an error and its causes: messages, hints, facts."""
        if self._pattern is None:
            return
        for link in _chain(error):
            link.args = tuple(self._argument(value) for value in link.args)
            if isinstance(link, KeepwarmError):
                link.message, link.hint = self.mask(link.message), self.mask(link.hint)
                link.facts = {name: self._fact(value) for name, value in link.facts.items()}

    def _fact(self, value: Fact) -> Fact:
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, list):
            return [self._fact(item) for item in value]
        if isinstance(value, dict):
            return {self.mask(str(name)): self._fact(item) for name, item in value.items()}
        return value

    def _argument(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, bytes | bytearray):
            return self.mask(value.decode("latin-1")).encode("latin-1")
        return value


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    following: list[BaseException | None] = [error]
    while following and len(seen) < _MAX_CHAIN:
        link = following.pop()
        if link is None or link in seen:
            continue
        seen.append(link)
        yield link
        following += [link.__cause__, link.__context__]


@functools.lru_cache(maxsize=64)
def _secrets(key: str, *urls: str) -> Secrets:
    secrets = Secrets(key, *(held for url in urls for held in _held(url)))
    _LIBRARY_LOG.known.append(secrets)
    return secrets


class _Filter(logging.Filter):
    """Masks the HTTP library's own debug log, which has the headers of a server's answer."""

    def __init__(self) -> None:
        super().__init__()
        self.known: deque[Secrets] = deque(maxlen=64)

    def filter(self, record: logging.LogRecord) -> bool:
        said = masked = record.getMessage()
        for secrets in tuple(self.known):
            masked = secrets.mask(masked)
        if masked != said:
            record.msg, record.args = masked, ()
        return True


_LIBRARY_LOG: Final = _Filter()
for _name in ("connection", "http11", "proxy", "socks"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_LIBRARY_LOG)


def _held(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user_information = parts.netloc.rpartition("@")[0]
    user, _, password = user_information.partition(":")
    yield from map(unquote, (user_information, password or user))
    yield from (value for _, value in parse_qsl(parts.query))


def _spellings(secret: str) -> str:
    encoded = "".join(_character(c) for c in secret)
    if len(secret) < SHORT_KEY:
        return rf"(?<![0-9A-Za-z]){encoded}(?![0-9A-Za-z])"
    return "|".join([encoded, *_inside_base64(secret)])


def _character(c: str) -> str:
    code = ord(c)
    ways = [
        re.escape(c),
        rf"%(?:25){{0,3}}{code:02x}",
        rf"\\{{1,4}}(?:u00|x){code:02x}",
        rf"&#(?:0{{0,4}}{code}|[xX]0{{0,4}}{code:x});",
    ]
    ways += [f"&{name};" for name, meant in _HTML.items() if meant == c]
    if c == " ":
        ways.append(r"\+")
    before = "" if c.isalnum() else r"\\{0,4}"
    return f"{before}(?:{'|'.join(ways)})"


_HTML: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def _inside_base64(secret: str) -> Iterator[str]:
    """The characters that depend on the secret alone, wherever in the encoded bytes it begins."""
    data = secret.encode()
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[math.ceil(offset * 8 / 6) : (offset + len(data)) * 8 // 6]
        if len(core) >= _MIN_BASE64:
            for spelled in {core, core.replace("+", "-").replace("/", "_")}:
                yield rf"[0-9A-Za-z+/_-]?{re.escape(spelled)}[0-9A-Za-z+/_-]{{0,2}}={{0,2}}"


NO_SECRETS: Final = Secrets()
"""Of an endpoint that needs no key."""
