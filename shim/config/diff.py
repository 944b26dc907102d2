"""The differences between two configurations, for a reload that keeps unchanged models warm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shim.config.schema.entry import ModelEntry
from shim.config.schema.kind_keys import FOLLOW_FILE_KEYS
from shim.config.schema.sections import Section


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """Models by what happened to them, and the machine's keys that changed.

    `changed` maps a model to the keys that differ; `sections` lists dotted keys such as
    `budget.limit`.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    unchanged: tuple[str, ...]
    sections: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.sections)


def changed_keys(old: Section, new: Section) -> tuple[str, ...]:
    """The keys of one section whose effective values differ."""
    return tuple(k for k in type(old).model_fields if getattr(old, k) != getattr(new, k))


def changed_entry_keys(old: ModelEntry, new: ModelEntry) -> tuple[str, ...]:
    """The keys of one model whose effective values differ, or that follow its file in one of the two."""
    written = (old.model_fields_set ^ new.model_fields_set) & FOLLOW_FILE_KEYS
    changed = {*changed_keys(old, new), *written}
    return tuple(key for key in ModelEntry.model_fields if key in changed)


def diff_models(
    old: Mapping[str, ModelEntry], new: Mapping[str, ModelEntry], sections: tuple[str, ...]
) -> ConfigDiff:
    """The difference of two sets of models; names are sorted."""
    both = sorted(old.keys() & new.keys())
    changed = {name: keys for name in both if (keys := changed_entry_keys(old[name], new[name]))}
    return ConfigDiff(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=changed,
        unchanged=tuple(name for name in both if name not in changed),
        sections=sections,
    )
