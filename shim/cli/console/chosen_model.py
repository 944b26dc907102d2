"""Models that a command names by their file, which no configuration has to mention.

The keeper takes such a file in under the file's name, beside the models that it has: its budget holds. It
leaves the catalog with the next `config reload`, or with the keeper.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from backends.machine.files.file_locks import KEEPER_LOCK, is_held
from backends.machine.files.in_folder import in_folder
from budget.errors import BadModelFile, ConfigError, UnknownModel
from shim.cli.console.context import read_config, required
from shim.cli.console.output import StatusLine
from shim.config import Config, ModelEntry, Role
from shim.paths import runtime_dir
from shim.wire.launch import running_connection, start, starting
from shim.wire.start_order import InForce
from shim.wire.threads import BlockingConnection

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """A model that a command was given, by its name or by its file.

    `config` has it under the name `model`. `file` is set where no configuration mentions it.
    """

    config: Config
    model: str
    file: Path | None = None
    role: Role | None = None

    @property
    def entry(self) -> ModelEntry:
        """Its entry."""
        return self.config.models[self.model]

    def taken_in(self, line: StatusLine) -> ChosenModel:
        """The same, as the running keeper has it; a keeper is started where none runs.

        Args:
            line: says that a keeper starts.

        Raises:
            KeepwarmError: the keeper cannot take the file in, or cannot be started.
        """
        if self.file is None:
            return self
        runtime = runtime_dir()
        with starting(runtime):
            keeper = running_connection(runtime)
            if keeper is not None:
                try:
                    return _added_to(keeper, runtime, self.file, self.role)
                finally:
                    keeper.close()
            line.show("starting the keeper and measuring the model")
            try:
                start(runtime, self.config, automatic=True)
            finally:
                line.clear()
            return self


def choose(
    ctx: click.Context,
    given: str,
    role: Role | None = None,
    uses: Collection[str] | None = None,
) -> ChosenModel:
    """The model that a command was given; nothing is asked of a keeper.

    Args:
        ctx: of the command.
        given: the model's name, or the path of a GGUF file.
        role: of a file that no configuration has.
        uses: the sections that the command acts on, as for `read_config`.

    Raises:
        UnknownModel: the configuration has no such model, and there is no such file.
        ConfigError: there is no configuration, and no file is named.
    """
    config = read_config(ctx, uses)
    if given in config.models:
        return ChosenModel(config, given)
    file = file_of(given)
    if file is None:
        config = with_given_files(config)
        config.entry(given)
        return ChosenModel(config, given)
    if not file.is_file():
        folder = file.is_dir()
        raise UnknownModel(
            f"No model is called {given!r}, and {'it is a folder' if folder else 'there is no such file'}.",
            hint=in_folder(file)
            if folder
            else "Name a model of `keepwarm list`, or the path of a GGUF file.",
            model=given,
        )
    known = name_of_file(config, file)
    return ChosenModel(config, known) if known is not None else with_file(config, file, role)


def with_given_files(config: Config) -> Config:
    """The configuration, with the files that its running keeper was given by their paths.

    Raises:
        ConfigError: there is no configuration, and the keeper has no such file either.
    """
    runtime = runtime_dir()
    present = InForce(runtime).read() if is_held(runtime / KEEPER_LOCK) else None
    if present is None or present.file != config.file or not present.models:
        return required(config)
    return config.model_copy(update={"models": {**present.models, **config.models}})


def file_of(given: str) -> Path | None:
    """The absolute path that a model's name is, if it is one."""
    looks_so = given.startswith(("/", "./", "../", "~")) or given.endswith(".gguf")
    try:
        return Path(os.path.abspath(Path(given).expanduser())) if looks_so else None  # noqa: PTH100
    except RuntimeError:  # a home that is not known
        return Path(given).absolute()


def name_of_file(config: Config, file: Path) -> str | None:
    """The first model of a configuration that has this file; None where none has."""
    return next(
        (
            name
            for name, entry in config.models.items()
            if entry.path is not None and entry.path.is_file() and entry.path.samefile(file)
        ),
        None,
    )


def with_file(config: Config, file: Path, role: Role | None = None) -> ChosenModel:
    """A configuration with a model of this file beside its own models.

    Without a role the file's pooling says it, so that a chat with an embedder is refused before it loads.
    """
    role = role or _role_by_file(file)
    name = _NOT_IN_NAMES.sub("-", file.name.removesuffix(".gguf")).strip("-") or "model"
    if name in config.models:
        name = f"{name}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:4]}"
    mapping = config.to_mapping()
    entry = {"path": str(file), **({"role": role} if role else {})}
    mapping["models"] = {**mapping.get("models", {}), name: entry}
    added = Config.from_mapping(mapping, label=_label(config))
    added.remember(config.file, {})
    return ChosenModel(added, name, file, role)


def _role_by_file(file: Path) -> Role | None:
    # Imported here: most commands read no model file.
    gguf = importlib.import_module("backends.gguf")
    checks = importlib.import_module("shim.config.role_checks")
    try:
        found: Role | None = checks.role_by_file(gguf.read_header(file))
    except BadModelFile:
        return None  # its own command says what is wrong with it
    return found


def _label(config: Config) -> str:
    return str(config.file or "the configuration given in code")


def _added_to(
    keeper: BlockingConnection, runtime: Path, file: Path, role: Role | None
) -> ChosenModel:
    present = InForce(runtime).read()
    if present is None:
        raise ConfigError(
            f"The configuration of the running keeper is not known, so it cannot take in {file}.",
            hint="`keepwarm keeper stop` ends it, and the next command starts another.",
            file=str(file),
        )
    known = name_of_file(present, file)
    if known is not None:
        return ChosenModel(present, known, file, role)
    added = with_file(present, file, role)
    mapping, label = added.config.to_mapping(), _label(present)
    if present.file is None:
        keeper.ask("reload", config=mapping, label=label)
    else:
        entries = {added.model: mapping["models"][added.model]}
        read_at = added.config.read_at
        keeper.ask("take_in", entries=entries, file=str(present.file), label=label, read_at=read_at)
    return added
