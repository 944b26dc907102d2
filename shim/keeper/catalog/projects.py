"""The configurations whose models one keeper runs: each is a project, and names are a project's own.

The first project's models keep their names. A model of another project is called `NAME@PROJECT` in the
keeper's books. Models of one name and the same settings are one model, whichever projects mean it, and
models of one file and the same settings share an engine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from budget.errors import ConfigError, QueueFull
from shim.config import Config, ModelEntry
from shim.config.schema.document import MOST_MODELS
from shim.wire.fingerprint import local_models, reference

NAME_LENGTH: Final = 128
LABEL_LENGTH: Final = 32
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True)
class Project:
    """The local models of one configuration, as far as the keeper was asked for them.

    `key`: its file, or a digest of a configuration made in code. `label`: its short name for people.
    `names`: the keeper's name of each model, by the project's own. `read_at`: when the configuration
    was read, in seconds of the machine's monotonic clock.
    """

    key: str
    label: str
    file: Path | None
    read_at: float
    models: Mapping[str, ModelEntry]
    names: Mapping[str, str]

    def named(self) -> dict[str, ModelEntry]:
        """Its models by the keeper's names."""
        return {self.names[own]: entry for own, entry in self.models.items()}

    def to_wire(self) -> dict[str, Any]:
        """The project as JSON-serialisable data, for `Projects.with_left`."""
        return {
            "label": self.label,
            "file": str(self.file) if self.file else None,
            "read_at": self.read_at,
            "models": {
                own: entry.model_dump(mode="json", exclude_unset=True)
                for own, entry in self.models.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Projects:
    """All projects of a keeper. Never changed: each change makes another.

    `sections`: the configuration whose `[budget]`, `[keeper]` and `[kv]` hold, and `front` the key of its
    project. `main`: the key of the first project. `config`: those sections with the models of all
    projects. `references`: the keeper's name of a model by what clients call it.
    """

    sections: Config
    front: str
    main: str
    by_key: Mapping[str, Project]
    config: Config = field(init=False)
    references: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Put the models of all projects together."""
        models: dict[str, ModelEntry] = {}
        references: dict[str, str] = {}
        for project in self.by_key.values():
            models |= project.named()
            for own, entry in project.models.items():
                references.setdefault(reference(own, entry), project.names[own])
        if len(models) > MOST_MODELS:
            raise QueueFull(
                f"The keeper has {MOST_MODELS} models of all projects, and takes in no more.",
                hint="`keepwarm config reload` drops those that no program uses.",
                limit=MOST_MODELS,
            )
        object.__setattr__(self, "config", self.sections.model_copy(update={"models": models}))
        object.__setattr__(self, "references", references)

    @classmethod
    def of(cls, config: Config) -> Projects:
        """A keeper's first project alone."""
        key, models = key_of(config), local_models(config)
        names = {own: own for own in models}
        project = Project(key, _label(config, key), config.file, config.read_at, models, names)
        return cls(config, key, key, {key: project})

    def with_models(self, given: Config) -> Projects:
        """The projects after a client handed over some models of its configuration.

        Raises:
            ConfigError: the project's configuration was read anew since the client read it.
        """
        key, models = key_of(given), local_models(given)
        known = self.by_key.get(key)
        if known is None:
            return self._with(self._project(given, key, models))
        if given.file is not None and given.read_at < known.read_at:
            raise ConfigError(
                f"{given.file} has changed since this program read it: the keeper runs "
                f"{', '.join(sorted(models))} as it is now.",
                hint="Start the program again.",
                newer=True,
                file=str(given.file),
            )
        return self._with(self._project(given, key, {**known.models, **models}))

    def with_config(self, config: Config, in_use: Collection[str]) -> Projects:
        """The projects after a reload: of the others, the models that nothing uses are gone.

        Args:
            config: the whole configuration of its project. Its sections hold from now on.
            in_use: the keeper's names of models that stay.
        """
        key = key_of(config)
        after = self
        if config.file is None and self.by_key[self.main].file is None:
            # What an inline keeper runs is changed, and does not become a second project.
            first = replace(self.by_key[self.main], key=key)
            rest = {k: p for k, p in self.by_key.items() if k not in (self.main, key)}
            after = Projects(config, key, key, {key: first, **rest})
        project = after._project(config, key, local_models(config))
        after = replace(after._with(project), sections=config, front=key)
        return after.without(after.config.models.keys() - project.named().keys() - set(in_use))

    def without(self, names: Collection[str]) -> Projects:
        """The projects without some models, by the keeper's names."""
        left = {}
        for key, project in self.by_key.items():
            models = {o: e for o, e in project.models.items() if project.names[o] not in names}
            if models or key in (self.main, self.front):
                kept = {own: project.names[own] for own in models}
                left[key] = replace(project, models=models, names=kept)
        return replace(self, by_key=left)

    def rows(self) -> list[dict[str, Any]]:
        """The projects as `keepwarm ps` shows them, the first project first."""
        return [
            {
                "project": project.label,
                "file": str(project.file) if project.file else None,
                "names": dict(project.names),
            }
            for project in self.by_key.values()
        ]

    def left(self) -> tuple[Config, list[dict[str, Any]]]:
        """What the keeper after a crash needs: the front configuration, and the other projects."""
        models = self.by_key[self.front].models
        front = self.sections.model_copy(update={"models": dict(models)})
        return front, [p.to_wire() for key, p in self.by_key.items() if key != self.front]

    def with_left(self, others: Iterable[Mapping[str, Any]]) -> Projects:
        """The projects with others that `left` gave.

        Raises:
            ConfigError: a model of them is not valid.
        """
        after = self
        for said in others:
            given = Config.from_mapping({"models": said["models"]}, label=str(said["label"]))
            file = Path(said["file"]) if said["file"] else None
            given.remember(file, {}, read_at=float(said["read_at"]))
            after = after.with_models(given)
        return after

    def _with(self, project: Project) -> Projects:
        return replace(self, by_key={**self.by_key, project.key: project})

    def _project(self, given: Config, key: str, models: Mapping[str, ModelEntry]) -> Project:
        """A project with these models; those that it had before keep the keeper's names."""
        known, others = self.by_key.get(key), [p for k, p in self.by_key.items() if k != key]
        label = known.label if known else _label(given, key)
        if any(project.label == label for project in others):
            label = f"{label}-{_digest(key)}"
        taken = {name for project in others for name in project.names.values()}
        names: dict[str, str] = {}
        for own in models:
            had = known.names.get(own) if known else None
            name = had or (own if key == self.main else f"{own[: NAME_LENGTH - 80]}@{label}")
            while name in taken:
                name = f"{own[: NAME_LENGTH - 80]}@{label}-{_digest(key, own, name)}"[:NAME_LENGTH]
            taken.add(name)
            names[own] = name
        return Project(key, label, given.file, given.read_at, models, names)


def key_of(config: Config) -> str:
    """What tells a project from others: its file, or its models where it was made in code."""
    if config.file is not None:
        return str(config.file)
    return "code-" + _digest(*sorted(reference(n, e) for n, e in local_models(config).items()))


def _label(config: Config, key: str) -> str:
    folder = _NOT_IN_NAMES.sub("-", config.file.parent.name).strip("-") if config.file else key
    return folder[:LABEL_LENGTH] or "root"


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=3).hexdigest()
