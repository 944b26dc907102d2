"""Mistakes of a configuration: what was found where, and what is allowed, all of them at once."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from budget.errors import ConfigError

OTHER_NAMES: Mapping[str, str] = {
    "api_key": "api_key_env",
    "batch_size": "n_batch",
    "ctx": "context",
    "ctx_size": "context",
    "extra_args": "engine_args",
    "file": "path",
    "gguf": "path",
    "gpu_layers": "n_gpu_layers",
    "max_models": "limit",
    "model": "path",
    "model_path": "path",
    "n_ctx": "context",
    "ngl": "n_gpu_layers",
    "num_ctx": "context",
    "parallel": "slots",
    "pinned": "pin",
    "system_prompt": "warm_prompt",
    "ttl": "keep_alive",
    "type": "backend",
    "vram": "limit",
}
"""Keys of other programs, with our names for them."""

SECRET_KEYS = frozenset({"api_key_env", "url"})
"""Keys that may hold a secret by mistake, so their values are never quoted."""
MAX_QUOTED = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: a dotted key, its line where known, what was found, what is allowed."""

    key: str
    found: str
    allowed: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key}: found {self.found}; allowed: {self.allowed}."

    def as_dict(self) -> dict[str, Any]:
        """The problem as JSON-serialisable data."""
        return {
            "key": self.key,
            "line": self.line,
            "found": self.found,
            "allowed": self.allowed,
            "message": str(self),
        }


def dotted(path: Iterable[str]) -> str:
    """A path as TOML writes it: parts that need quotes have them, and escapes in them."""
    return ".".join(
        part
        if part.replace("_", "").replace("-", "").isalnum()
        else json.dumps(part, ensure_ascii=False)
        for part in path
    )


def show_value(value: object) -> str:
    """A found value, short and on one line."""
    match value:
        case str():
            text = value if len(value) <= MAX_QUOTED else value[: MAX_QUOTED - 3] + "..."
            return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 256:
            return f"an integer of {value.bit_length()} bits"
        case int() | float():
            return str(value)[:MAX_QUOTED]
        case Mapping():
            return "a table"
        case list() | tuple():
            return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def suggest(name: str, known: Iterable[str]) -> str:
    """A `did you mean` for an unknown name, or an empty text."""
    names = sorted(known)
    other = OTHER_NAMES.get(name.lower().replace("-", "_"))
    if other in names:
        return f' (did you mean "{other}"?)'
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def given_twice(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """The names that a JSON object has more than once; its reader would take the last one of each."""
    found = Counter(name for name, _ in pairs)
    return sorted(name for name, count in found.items() if count > 1)


def raise_for(label: str, problems: list[Problem]) -> None:
    """Raise one `ConfigError` that lists every problem; nothing when there is none."""
    if not problems:
        return
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    if len(ordered) == 1:
        message = f"{label}: {ordered[0]}"
    else:
        listed = "\n".join(f"  {problem}" for problem in ordered)
        message = f"{label} has {len(ordered)} mistakes:\n{listed}"
    raise ConfigError(message, file=label, problems=[p.as_dict() for p in ordered])


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """A validation error of `root` as problems, without the contradictions inside models."""
    return [
        _problem(details, root)
        for details in error.errors(include_url=False)
        if details["type"] != "conflicts"
    ]


def _problem(details: ErrorDetails, root: type[BaseModel]) -> Problem:
    path = tuple(str(part) for part in details["loc"])
    if path and path[-1] == "[key]":
        return Problem(
            dotted(path[:-1]),
            f"the name {show_value(path[-2])}",
            "letters, digits and . _ : / @ + - (at most 128, a letter or digit first)",
        )
    owner, field_path = _owner(root, path)
    name = dotted(field_path)
    if details["type"] == "extra_forbidden":
        if owner is not root and path[0] == "models" and isinstance(details["input"], Mapping):
            return _unquoted_name(field_path, details["input"])
        known = set(owner.model_fields)
        found = f"an unknown key{suggest(field_path[-1], known)}"
        return Problem(name, found, ", ".join(sorted(known)))
    if details["type"] in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return Problem(name or "the file", show_value(details["input"]), f"a table [{name}]")
    secret = bool(field_path) and field_path[-1] in SECRET_KEYS
    found = "a value that is not shown" if secret else show_value(details["input"])
    reason = (details.get("ctx") or {}).get("error")
    why = f" ({reason})" if isinstance(reason, ValueError) else ""
    return Problem(name, found + why, _allowed(owner, field_path) or details["msg"])


def _unquoted_name(path: tuple[str, ...], table: Mapping[str, Any]) -> Problem:
    """The mistake of `[models.llama3.1-8b]`, which TOML reads as a table `1-8b` in the model `llama3`."""
    while len(table) == 1 and isinstance(inner := next(iter(table.values())), Mapping):
        path, table = (*path, *table), inner
    quoted = f'[{path[0]}."{".".join(path[1:])}"]'
    found = "a table in a model; TOML reads the dots of a name without quotes so"
    return Problem(dotted(path), found, f"a name with dots in quotes: {quoted}")


def only_tables(entry: Mapping[str, Any]) -> bool:
    """Whether a model has nothing but tables, so that its own name is the beginning of one with dots."""
    return bool(entry) and all(isinstance(value, Mapping) for value in entry.values())


def _owner(root: type[BaseModel], path: tuple[str, ...]) -> tuple[type[BaseModel], tuple[str, ...]]:
    """The section that holds a path, and the path cut at that section's key."""
    field = root.model_fields.get(path[0]) if path else None
    if field is None:
        return root, path[:1]
    sections = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
    section = next(a for a in sections if issubclass(a, BaseModel))
    depth = 2 if section is field.annotation else 3
    return (section if len(path) >= depth else root), path[:depth]


def _allowed(owner: type[BaseModel], path: tuple[str, ...]) -> str:
    field = owner.model_fields.get(path[-1]) if path else None
    extra = field.json_schema_extra if field is not None else None
    return str(extra.get("x-allowed", "")) if isinstance(extra, dict) else ""
