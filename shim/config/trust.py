"""Files that were merely found in the working folder, and the keys that they may use only when trusted.

Such a file may belong to a project of another author. It may name models and give them bytes. Without
trust its effect stays on this machine and in the file's own folder. It may not spend a secret (name the
variable of a key), connect to another machine (a model's endpoint gets the prompts, an RPC server the
weights), run Python code, run or reach a file that an engine's argument names, or have a file written
outside its own folder. `keepwarm config trust` allows all that to one file, by its path and its content.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from backends.foreign.json_shapes import table, text, whole
from backends.machine.files.whole_files import read_shape, write_whole
from budget.errors import ConfigError
from shim.config.problems import Problem, dotted
from shim.config.schema.document import SECTIONS, Config
from shim.config.schema.endpoint_values import EndpointEntry
from shim.config.schema.engine_args import risky_options
from shim.config.schema.entry import ModelEntry
from shim.config.schema.sections import Section

STORE_NAME: Final = "trusted.json"
ALLOWED: Final = "that of a file that was trusted, or named by --config or $KEEPWARM_CONFIG"
REASONS_SHOWN: Final = 3
_FORMAT: Final = 1


def digest_of(raw: bytes) -> str:
    """The digest by which a file's content is recognised."""
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True, slots=True)
class TrustedFile:
    """A file that was trusted. `state`: `trusted`, `changed` since then, or `gone`."""

    path: str
    sha256: str
    state: str


class TrustedFiles:
    """The files that a user trusts, kept beside the user's own configuration.

    Args:
        folder: the user's configuration folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STORE_NAME

    def digest(self, file: Path) -> str | None:
        """The digest of a file when it was trusted; None when it never was."""
        return self._read().get(os.path.realpath(file))

    def trust(self, file: Path, raw: bytes) -> None:
        """Trust a file for as long as its content is this.

        Raises:
            ConfigError: that cannot be kept.
        """
        self._write({**self._read(), os.path.realpath(file): digest_of(raw)})

    def revoke(self, file: Path) -> bool:
        """Stop trusting a file; returns whether it was trusted.

        Raises:
            ConfigError: that cannot be kept.
        """
        known = self._read()
        found = known.pop(os.path.realpath(file), None) is not None
        if found:
            self._write(known)
        return found

    def rows(self) -> list[TrustedFile]:
        """All trusted files, by path."""
        return [
            TrustedFile(path, digest, _state(Path(path), digest))
            for path, digest in sorted(self._read().items())
        ]

    def _read(self) -> dict[str, str]:
        return read_shape(self.path, "the list of trusted configuration files", _digests) or {}

    def _write(self, files: Mapping[str, str]) -> None:
        text = json.dumps({"format": _FORMAT, "files": files}, indent=2) + "\n"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.path, text.encode())
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written: {error.strerror}.",
                hint="Set $XDG_CONFIG_HOME to a folder of yours, or name the file with --config.",
                file=str(self.path),
            ) from None


def _digests(value: object) -> dict[str, str]:
    fields = table(value)
    if whole(fields["format"]) != _FORMAT:
        raise ValueError(f"format {fields['format']}")
    return {path: text(digest) for path, digest in table(fields["files"]).items()}


def _state(path: Path, digest: str) -> str:
    try:
        return "trusted" if digest_of(path.read_bytes()) == digest else "changed"
    except OSError:
        return "gone"


def risks(config: Config, folder: Path) -> list[Problem]:
    """The keys of a configuration that need trust (without lines). `folder` is its file's folder."""
    found: list[Problem] = []
    for name in SECTIONS:
        section = getattr(config, name)
        for key in _keys(section, "folder"):
            found += _outside(f"{name}.{key}", getattr(section, key), folder, "a folder")
        found += _addresses(section, name)
    if (socket := config.metrics.prometheus or "").startswith("/"):
        found += _outside("metrics.prometheus", socket, folder, "a path")
    for name, entry in config.models.items():
        found += _addresses(entry, "models", name)
        found += (
            Problem(dotted(("models", name, key)), what, ALLOWED) for key, what in _programs(entry)
        )
    return found


def _programs(entry: ModelEntry) -> Iterator[tuple[str, str]]:
    """The keys of a model that spend a secret or run something, each with what was found."""
    for key in _keys(entry, "secret"):
        yield key, f"the name of a key that is sent to {entry.url}"
    for key in _keys(entry, "run"):
        value = getattr(entry, key)
        # A command as the file has it, and not as Python's tuple.
        is_command = isinstance(value, tuple)
        written = json.dumps(list(value), ensure_ascii=False) if is_command else value
        yield key, f"{written}, which is run here"
    for key in _keys(entry, "program"):
        if options := risky_options(getattr(entry, key)):
            yield key, f"{', '.join(options)}, which may read, write or run what it names"


def _outside(key: str, place: Path | str, own: Path, what: str) -> Iterator[Problem]:
    written = Path(os.path.realpath(place))
    if not written.is_relative_to(os.path.realpath(own)):
        found = f"{written}, which is outside of the file's own folder"
        yield Problem(key, found, f"{what} in {own}, or {ALLOWED}")


def _addresses(section: Section, *path: str) -> Iterator[Problem]:
    for key in _keys(section, "address"):
        value = getattr(section, key)
        listed = (value,) if isinstance(value, str) else value
        named = [one.url if isinstance(one, EndpointEntry) else one for one in listed]
        elsewhere = [address for address in named if not _is_here(address)]
        if elsewhere:
            what = f"{', '.join(elsewhere)}, which requests would be sent to"
            yield Problem(dotted((*path, key)), what, f"an address of this machine, or {ALLOWED}")


def _is_here(address: str) -> bool:
    """Whether a URL, a `host:port` or the path of a socket leads to this machine itself."""
    if address.startswith("/"):
        return True
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys(section: Section, trust: str) -> Iterator[str]:
    """The keys of a section that need trust for a reason, where they are given."""
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("x-trust") == trust and getattr(section, name):
            yield name


def check_trust(file: Path, raw: bytes, found: list[Problem], trusted: TrustedFiles) -> None:
    """Refuse a merely found file that uses keys which need trust, unless it is trusted.

    Args:
        file: the file.
        raw: its content.
        found: the keys in it that need trust.
        trusted: the files that the user trusts.

    Raises:
        ConfigError: names the keys, and the command that trusts it.
    """
    if not found:
        return
    digest = trusted.digest(file)
    if digest == digest_of(raw):
        return
    shown = [f"{_place(problem)} has {problem.found}" for problem in found[:REASONS_SHOWN]]
    more = [f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    state = "is not trusted" if digest is None else "has changed since it was trusted"
    raise ConfigError(
        f"{file} lies in the working folder and {state}: {'; '.join([*shown, *more])}.",
        hint=f"Read it; if you mean it, `keepwarm config trust {shlex.quote(str(file))}`.",
        file=str(file),
        keys=[problem.key for problem in found],
        problems=[problem.as_dict() for problem in found],
    )


def _place(problem: Problem) -> str:
    return f"line {problem.line}: {problem.key}" if problem.line else problem.key
