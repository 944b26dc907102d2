"""Fingerprints of a configuration: they show whether a client and a keeper have the same one.

They are made of the resolved configuration, so its spelling does not matter. A default that is written
out, another unit for the same bytes, or a link to the same file change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from budget.errors import ConfigError
from shim.config import BudgetSection, Config, ModelEntry
from shim.config.schema.sections import Section
from shim.config.schema.values import Amount, Span

Fingerprint = dict[str, str]


def fingerprint(config: Config) -> Fingerprint:
    """A short hash for the budget, the keeper's section and every local model, by dotted key.

    Remote models are left out, because the keeper takes no part in their requests.
    """
    parts: dict[str, Any] = {
        "budget": _budget(config.budget),
        "keeper": _plain(config.keeper),
    }
    for name, entry in config.models.items():
        if not entry.remote:
            parts[f"models.{name}"] = _model(entry)
    return {key: _digest(value) for key, value in parts.items()}


def label_of(config: Config) -> str:
    """The name of a configuration in messages between a client and a keeper."""
    return str(config.file) if config.file else "given in code"


def differing(mine: Fingerprint, keepers: Fingerprint) -> list[str]:
    """The keys in which a client's configuration differs from the keeper's."""
    return sorted(key for key, digest in mine.items() if keepers.get(key) != digest)


def differs(keys: list[str], keeper_file: str) -> ConfigError:
    """The error of a client whose configuration differs from the keeper's."""
    return ConfigError(
        f"The running keeper (configuration: {keeper_file}) differs from this program's "
        f"configuration in {', '.join(keys)}.",
        hint="`keepwarm config reload` makes the keeper take yours; models that did not change "
        "stay warm.",
        differ=list(keys),
    )


def _budget(budget: BudgetSection) -> dict[str, Any]:
    """The `[budget]` section with each device's resolved limit and reserve in place of its spelling."""
    data = _fields(budget, BudgetSection.model_fields.keys() - {"device", "devices", "limit"})
    data["devices"] = [
        [share.device, str(share.limit or budget.limit), str(share.reserve or budget.reserve)]
        for share in budget.shares
    ]
    return data


def _model(entry: ModelEntry) -> dict[str, Any]:
    keys = entry.relevant_keys() - {"kv_type", "kv_type_k", "kv_type_v", "pin"}
    data = _fields(entry, keys)
    data["kv_types"] = entry.kv_types
    data["pinned"] = entry.pinned
    return data


def _fields(section: Section, keys: Iterable[str]) -> dict[str, Any]:
    # Not by pydantic: what a handler of a signal raises in one of its serializers comes out as a
    # `PydanticSerializationError`.
    return {name: _plain(getattr(section, name)) for name in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _fields(value, type(value).model_fields)
    if isinstance(value, Path):
        return os.path.realpath(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Amount):
        return str(value)
    if isinstance(value, Span) and value.least != int(value):
        return {"min": value.least, "preferred": int(value)}
    return value


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=6).hexdigest()
