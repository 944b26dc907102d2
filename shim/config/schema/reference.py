"""The reference of all keys, made from the models: a JSON schema and the tables of the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from shim.config.schema.document import SECTIONS, Config
from shim.config.schema.entry import ModelEntry
from shim.config.schema.sections import Section
from shim.config.schema.values import Amount


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file (draft 2020-12)."""
    schema = Config.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "keepwarm.toml",
    }


def markdown_reference() -> str:
    """One table for each section: key, what is allowed, default, meaning."""
    tables = []
    for name in SECTIONS:
        section = Config.model_fields[name].annotation
        if isinstance(section, type) and issubclass(section, Section):
            tables.append(_table(f"[{name}]", section))
    return "\n\n".join([*tables, _table("[models.NAME]", ModelEntry)]) + "\n"


def _table(title: str, section: type[Section]) -> str:
    head = (f"### `{title}`", "", "| key | allowed | default | meaning |", "|---|---|---|---|")
    return "\n".join([*head, *(_row(*item) for item in section.model_fields.items())])


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    allowed = extra.get("x-allowed", "") if isinstance(extra, dict) else ""
    cells = (f"`{name}`", str(allowed), _default(field.default), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: object) -> str:
    match value:
        case None | ():
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case Amount() | Path() | str():
            return f'`"{value}"`'
        case float():
            return f"`{value:g}`"
    return f"`{value}`"
