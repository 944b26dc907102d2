"""What a client and its keeper agree on: the budget at each connection, each model at its first request."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from budget.errors import ConfigError, KeepwarmError, UnknownModel
from shim.config import Config, load_config
from shim.wire.agreed_sections import Difference, differing, differs
from shim.wire.fingerprint import called, label_of, local_models, name_of
from shim.wire.json_lines import VERSION
from shim.wire.keeper_connection import KeeperConnection

LOG = logging.getLogger("keepwarm.client")

MOST_READINGS: Final = 10
"""How often a file is read again for one request: other programs may read it later and be faster."""


class _References(dict[str, str]):
    """What the keeper is asked for where this client says a name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config

    def __missing__(self, name: str) -> str:
        self[name] = reference = called(self._config, name)
        return reference


class Agreement:
    """The configuration of a session, as the keeper knows it.

    Args:
        config: the configuration.
        path: the file that it was read from, where one was named.
    """

    def __init__(self, config: Config, path: Path | None) -> None:
        self._path = path
        self._followed: set[str] = set()
        self.set(config)

    def set(self, config: Config) -> None:
        """Use another configuration from now on."""
        self.config = config
        self.references = _References(config)

    def set_path(self, path: Path | None) -> None:
        """Read the configuration from another file where it is read again."""
        self._path = path

    # A new connection

    async def hello(self, connection: KeeperConnection) -> None:
        """Begin a connection.

        Raises:
            ConfigError: the keeper's budget is another one.
        """
        said = await connection.ask("hello", version=VERSION)
        found = differing(self.config, said)
        if found and not self._catch_up(said, found):
            budget = {key: both for key, both in found.items() if key.startswith("budget.")}
            if budget:
                raise differs(budget, self.config, str(said["config"]))
            self._follow(found, said)

    def _catch_up(self, said: Mapping[str, Any], found: Mapping[str, Difference]) -> bool:
        """Whether the keeper's sections count, because it read the same file later than this client."""
        if label_of(self.config) != said["config"] or said["since"] <= self.config.read_at:
            return False
        again = self._read_again()
        if again is not None and not differing(again, said):
            self._use(again)
        else:
            self._follow(found, said)
        return True

    def _follow(self, found: Mapping[str, Difference], said: Mapping[str, Any]) -> None:
        """Say once for each key that the keeper's value counts."""
        new = [key for key in found if key not in self._followed]
        self._followed.update(new)
        if new:
            LOG.warning(
                "the keeper's configuration (%s) differs in %s, and the keeper's counts until `keepwarm "
                "config reload`",
                said["config"],
                ", ".join(f"{key} ({found[key][1]} instead of {found[key][0]})" for key in new),
            )

    def _use(self, again: Config) -> None:
        LOG.warning("%s has changed since this program read it; it is read again", again.file)
        self.set(again)

    def _read_again(self) -> Config | None:
        """The configuration, read again from its file; None where the file cannot be found as before."""
        if self.config.file is None:
            return None
        try:
            again = load_config(self._path)
        except KeepwarmError:
            return None
        return again if again.file == self.config.file else None

    # Models

    async def hand_over(self, connection: KeeperConnection, references: Sequence[str]) -> None:
        """Make models known to the keeper, each as this client's configuration has it.

        Raises:
            ConfigError: the configuration that the keeper has is newer, and cannot be read here.
            UnknownModel: a model is gone from the configuration, which was read again.
        """
        names = [name_of(one) for one in references]
        # A link may lead elsewhere since the settings were resolved.
        self.references = _References(self.config)
        for _ in range(MOST_READINGS):
            try:
                return await self._take_in(connection, names)
            except ConfigError as error:
                again = self._read_again() if error.facts.get("newer") else None
                if again is None:
                    raise
                self._use(again)
        return await self._take_in(connection, names)

    async def _take_in(self, connection: KeeperConnection, names: Sequence[str]) -> None:
        config = self.config
        local = local_models(config)
        gone = [name for name in names if name not in local]
        if gone:
            raise UnknownModel(
                f"{label_of(config)}, as it is now, has no local model {', '.join(gone)}.",
                hint=f"It has: {', '.join(sorted(local)) or 'none'}.",
                model=gone[0],
            )
        mapping = config.model_copy(update={"models": {name: local[name] for name in names}})
        entries = mapping.to_mapping()["models"]
        for entry in entries.values():
            entry.pop(
                "fallback", None
            )  # the client's own, and its name may be known to the client alone
        await connection.ask(
            "take_in",
            entries=entries,
            file=str(config.file) if config.file else None,
            label=label_of(config),
            read_at=config.read_at,
        )
