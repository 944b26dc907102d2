"""The order that starts a keeper, and the configuration that it leaves for the next one if it crashes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from backends.foreign.foreign_json import parse_json
from backends.foreign.json_shapes import real, rows, table, text, whole
from backends.machine.files.whole_files import BadState, parse_state, read_shape, write_whole
from budget.errors import ConfigError
from shim.config import Config

LOG = logging.getLogger("keepwarm.keeper")

IN_FORCE: Final = "in-force.json"
_FORMAT: Final = 2
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Order:
    """How a keeper is to run.

    `automatic`: a client started it, so it ends after `idle_exit` without clients. `read_at`: when that
    client read its configuration, in seconds of the machine's monotonic clock. `others`: the projects
    beside it that a keeper which crashed had taken in.
    """

    config: Config
    runtime: Path
    automatic: bool
    read_at: float
    others: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> bytes:
        """The order as JSON. It has no secrets, because API keys are named by their variables."""
        fields = {"automatic": self.automatic, "read_at": self.read_at, **_said(self.config)}
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes, runtime: Path) -> Self:
        """The order that a client wrote.

        Raises:
            ConfigError: its configuration is not valid.
        """
        fields = parse_json(data)
        read_at = float(fields["read_at"])
        return cls(_config_of(fields, read_at), runtime, bool(fields["automatic"]), read_at)


def _said(config: Config) -> dict[str, Any]:
    return {
        "config": config.to_mapping(),
        "file": str(config.file) if config.file else None,
        "label": str(config.file or "the configuration given in code"),
    }


def _config_of(said: dict[str, Any], read_at: float) -> Config:
    config = Config.from_mapping(said["config"], label=str(said["label"]))
    config.remember(Path(said["file"]) if said["file"] else None, {}, read_at=read_at)
    return config


class InForce:
    """The configuration that a keeper runs with, in its folder for as long as it runs.

    A keeper that ends in good order removes it. If the file is left, the keeper crashed. The client that
    starts the next keeper may have read its configuration file before the last reload.
    """

    def __init__(self, runtime: Path) -> None:
        self._path = runtime / IN_FORCE

    def survives(self, order: Order) -> Order:
        """The order, with the configurations in force if the client's is an older reading of one of them.

        A keeper that is started on purpose keeps its own order. So does a keeper started by a client whose
        file the keeper before did not know.
        """
        left = read_shape(self._path, "the configuration of a keeper that crashed", _left)
        if left is None or not order.automatic or not _is_newer(left, order):
            return order
        try:
            config = _config_of(left, float(left["since"]))
        except (ConfigError, KeyError, TypeError) as error:
            LOG.warning("the configuration of the keeper that crashed is not taken over: %s", error)
            return order
        others = left["others"]
        if not others and not config.diff(order.config):
            return order
        LOG.warning(
            "the keeper before this one crashed: its configuration stays in force; it was loaded after "
            "this client read %s",
            config.file or "its own",
        )
        return replace(order, config=config, others=others)

    def read(self) -> Config | None:
        """The configuration that the keeper of this folder runs with; None where no file says so."""
        try:
            left = parse_state(self._path, _left)
            return _config_of(left, float(left["since"]))
        except (OSError, BadState, ConfigError, KeyError, TypeError):
            return None

    def write(self, config: Config, others: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the configurations that are in force now; a failure is only logged.

        Args:
            config: the one whose sections hold.
            others: the other projects, JSON-serialisable.
        """
        now = {"format": _FORMAT, "since": time.monotonic(), "boot": _boot()}
        fields = {**now, **_said(config), "others": list(others)}
        try:
            write_whole(self._path, json.dumps(fields).encode())
        except OSError as error:
            LOG.warning("the configuration in force would not survive a crash: %s", error)

    def remove(self) -> None:
        """Remove the file, because the keeper ends in good order."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("%s cannot be removed: %s", self._path, error)


def _left(value: object) -> dict[str, Any]:
    fields = dict(table(value))
    if whole(fields["format"]) != _FORMAT:
        raise ValueError(f"format {fields['format']}")
    real(fields["since"]), text(fields["boot"]), text(fields["label"]), table(fields["config"])
    if fields["file"] is not None:
        text(fields["file"])
    fields["others"] = [dict(table(other)) for other in rows(fields["others"])]
    for other in fields["others"]:
        text(other["label"]), real(other["read_at"]), table(other["models"])
    return fields


def _is_newer(left: Mapping[str, Any], order: Order) -> bool:
    """Whether the left configuration was put in force after the client read the same file."""
    file = str(order.config.file) if order.config.file else None
    files = [left["file"], *(other["file"] for other in left["others"] if other["file"])]
    if left["boot"] != _boot() or file not in files:
        return False
    return bool(order.read_at < left["since"])


def _boot() -> str:
    """The id of this boot, because monotonic clocks begin anew at each boot."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
