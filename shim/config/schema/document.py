"""A whole configuration: its sections and models, checked, with the origin of every key."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError
from pydantic_core import PydanticSerializationError

from budget.errors import ConfigError, UnknownModel
from shim.config.diff import ConfigDiff, changed_keys, diff_models
from shim.config.lines import with_lines
from shim.config.problems import Problem, dotted, only_tables, problems_of, raise_for
from shim.config.schema.entry import ModelEntry
from shim.config.schema.kind_keys import conflicts
from shim.config.schema.sections import (
    BudgetSection,
    KeeperSection,
    KvSection,
    MetricsSection,
    Section,
    TraceSection,
    budget_conflicts,
)
from shim.config.schema.values import ModelName

SECTIONS = ("budget", "keeper", "kv", "trace", "metrics")
MOST_MODELS = 4096
"""The most models of a configuration: with so many, a reload delays other clients by under a second."""
FILE_KEYS = (
    "path",
    "mmproj",
    "draft_model",
    "lora",
    "files",
    "python",
    "cwd",
    "ca_file",
    "llama_server",
)
_LISTED = 30
"""An error lists so many names of models."""
_FOLDERS_TOO = frozenset({"files", "cwd"})


@dataclass(frozen=True)
class _Reading:
    """When a configuration was read; two readings of the same are equal."""

    at: float = dataclasses.field(default_factory=time.monotonic, compare=False)


class Config(Section):
    """A checked configuration. Frozen; paths are absolute, times in seconds, bytes `Amount`s."""

    budget: BudgetSection = Field(
        default=BudgetSection(),
        description="How many bytes may be booked, and how long requests wait.",
    )
    keeper: KeeperSection = Field(
        default=KeeperSection(), description="The background process that owns books and engines."
    )
    kv: KvSection = Field(
        default=KvSection(), description="KV state kept on disk while its model is away."
    )
    trace: TraceSection = Field(
        default=TraceSection(), description="What is written about each run."
    )
    metrics: MetricsSection = Field(
        default=MetricsSection(), description="What the keeper tells programs that watch it."
    )
    models: dict[ModelName, ModelEntry] = Field(
        default_factory=dict, description="The models that callers name: [models.NAME]."
    )

    _file: Path | None = PrivateAttr(default=None)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _reading: _Reading = PrivateAttr(default_factory=_Reading)

    @classmethod
    def from_mapping(
        cls,
        data: Mapping[str, Any],
        *,
        base: Path | None = None,
        label: str = "the configuration",
        lines: Mapping[str, int] | None = None,
    ) -> Self:
        """The configuration that a mapping shaped like a file describes.

        Args:
            data: sections by name, as TOML gives them.
            base: the folder that relative paths start at; the working directory when left out.
            label: what errors call the mapping.
            lines: the line of each of its dotted keys, for errors.

        Raises:
            ConfigError: lists every mistake.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{label}: found a {type(data).__name__}; allowed: a table.")
        config, problems = check_mapping(cls, data, base=base)
        raise_for(label, with_lines(problems, lines or {}))
        if config is None:
            raise ConfigError(f"{label} does not hold.", file=label)
        return config

    @classmethod
    def for_files(
        cls, files: Mapping[str, str | Path], *, budget: Mapping[str, Any] | None = None
    ) -> Self:
        """A configuration of bare GGUF files by name, with everything else at its default."""
        models = {name: {"path": str(path)} for name, path in files.items()}
        return cls.from_mapping({"budget": dict(budget or {}), "models": models})

    @property
    def file(self) -> Path | None:
        """The file it was read from; None for one made in code or from defaults."""
        return self._file

    @property
    def read_at(self) -> float:
        """When it was read or made, in seconds of the machine's monotonic clock."""
        return self._reading.at

    def entry(self, name: str) -> ModelEntry:
        """A model's entry.

        Raises:
            UnknownModel: there is none of that name; the hint has the nearest one, and others.
        """
        found = self.models.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.models, 1)
            listed = sorted(self.models)[:_LISTED]
            more = ", ..." * (len(self.models) > _LISTED)
            raise UnknownModel(
                f"No model is called {name!r}.",
                hint=f"{f'Is {near[0]!r} meant? ' if near else ''}{self.file or 'The configuration'} has: "
                f"{', '.join(listed) or 'no models'}{more}.",
                model=name,
            )
        return found

    def origin(self, key: str) -> str:
        """Where a dotted key's value comes from: `FILE:LINE`, `HARNESS_ENDPOINTS`, or `default`."""
        return self._origins.get(key, "default")

    def remember(
        self, file: Path | None, origins: Mapping[str, str], *, read_at: float | None = None
    ) -> None:
        """Note where the values were read, and when if not just now. For the reader of a file."""
        if read_at is not None:
            self._reading = _Reading(read_at)
        self._file = file
        self._origins = dict(origins)

    def diff(self, other: Config) -> ConfigDiff:
        """The changes if `other` takes this configuration's place."""
        sections = tuple(
            f"{name}.{key}"
            for name in SECTIONS
            for key in changed_keys(getattr(self, name), getattr(other, name))
        )
        return diff_models(self.models, other.models, sections)

    def to_mapping(self) -> dict[str, Any]:
        """The given values, JSON-serialisable; `from_mapping` is the inverse. Paths are absolute."""
        try:
            return self.model_dump(mode="json", exclude_unset=True)
        except PydanticSerializationError as error:
            # What a handler of a signal raised in a serializer of a value.
            raise error.__cause__ or error from None

    def missing_files(self) -> list[tuple[str, Path]]:
        """The dotted keys that name a file which is not there, with the path."""
        return [
            (f"{dotted(('models', name))}.{key}", path)
            for name, entry in self.models.items()
            for key in FILE_KEYS
            for path in _as_paths(getattr(entry, key))
            if not (
                path.exists() if key in _FOLDERS_TOO or entry.backend == "vllm" else path.is_file()
            )
        ]


_C = TypeVar("_C", bound=Config)


def _as_paths(value: Path | str | tuple[Path, ...] | None) -> tuple[Path, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (Path(value),)


def check_mapping(
    kind: type[_C], data: Mapping[str, Any], *, base: Path | None
) -> tuple[_C | None, list[Problem]]:
    """The configuration, or None, and every mistake (without lines)."""
    problems = list(_conflict_problems(data))
    try:
        config = kind.model_validate(dict(data), context={"base": base})
    except ValidationError as error:
        return None, problems_of(error, kind) + problems
    return config, problems


def _conflict_problems(data: Mapping[str, Any]) -> list[Problem]:
    budget = data.get("budget")
    about_budget = budget_conflicts(budget) if isinstance(budget, Mapping) else ()
    problems = [Problem(f"budget.{key}", found, allowed) for key, found, allowed in about_budget]
    models = data.get("models")
    if not isinstance(models, Mapping):
        return problems
    if len(models) > MOST_MODELS:
        problems.append(Problem("models", f"{len(models)} models", f"at most {MOST_MODELS}"))
    for name, entry in models.items():
        fallback = entry.get("fallback") if isinstance(entry, Mapping) else None
        if isinstance(fallback, str) and (fallback == name or fallback not in models):
            others = ", ".join(sorted(str(one) for one in models if one != name)) or "none"
            where = dotted(("models", str(name), "fallback"))
            problems.append(Problem(where, f"{fallback!r}", f"another model; there are {others}"))
    return problems + [
        Problem(dotted(("models", str(name), key)), found, allowed)
        for name, entry in models.items()
        if isinstance(entry, Mapping) and not only_tables(entry)
        for key, found, allowed in conflicts(entry)
    ]
