"""Fingerprints of models: they show whether a client and a keeper mean the same by a name.

They are made of the resolved settings, so their spelling does not matter. A default that is written
out, another unit for the same bytes, or a link to the same file change nothing, unless what is left out
follows the model's file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from shim.config import Config, ModelEntry
from shim.config.schema.kind_keys import FOLLOW_FILE_KEYS, TIMEOUT_KEYS
from shim.config.schema.sections import Section
from shim.config.schema.values import Amount, Span

_SEPARATOR: Final = "#"
"""Between a name and a fingerprint; no model's name has it."""
_OF_CLIENTS: Final = frozenset({"kv_type", "kv_type_k", "kv_type_v", "pin", "fallback"})
"""Keys that are resolved below, or that the keeper does nothing with."""


def fingerprint(entry: ModelEntry) -> str:
    """A short hash of what the keeper does with a local model."""
    keys = entry.relevant_keys() - _OF_CLIENTS - TIMEOUT_KEYS
    data = fields_of(entry, keys)
    data["kv_types"] = entry.kv_types
    data["pinned"] = entry.pinned
    data["left_out"] = sorted(FOLLOW_FILE_KEYS - entry.model_fields_set)
    text = json.dumps(data, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=6).hexdigest()


def reference(name: str, entry: ModelEntry) -> str:
    """What a client calls a local model of its own: its name and its settings."""
    return f"{name}{_SEPARATOR}{fingerprint(entry)}"


def called(config: Config, name: str) -> str:
    """What the keeper is asked for where a configuration's client says a name."""
    entry = config.models.get(name)
    return name if entry is None or entry.remote else reference(name, entry)


def name_of(said: str) -> str:
    """The name in a reference; a plain name is returned as it is."""
    return said.partition(_SEPARATOR)[0]


def is_reference(said: str) -> bool:
    """Whether a client means a model of its own, and not the keeper's name of one."""
    return _SEPARATOR in said


def local_models(config: Config) -> Mapping[str, ModelEntry]:
    """The models that the keeper runs. Remote models are the client's own business."""
    return {name: entry for name, entry in config.models.items() if not entry.remote}


def label_of(config: Config) -> str:
    """The name of a configuration in messages between a client and a keeper."""
    return str(config.file) if config.file else "a configuration without a file"


def fields_of(section: Section, keys: Iterable[str]) -> dict[str, Any]:
    """The values of some keys, JSON-serialisable and without their spelling."""
    # Not by pydantic: what a handler of a signal raises in one of its serializers comes out as a
    # `PydanticSerializationError`.
    return {name: _plain(getattr(section, name)) for name in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return fields_of(value, type(value).model_fields)
    if isinstance(value, Path):
        return os.path.realpath(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Amount):
        return str(value)
    if isinstance(value, Span) and value.least != int(value):
        return {"min": value.least, "preferred": int(value)}
    return value
