"""Schemas and grammars for the shape of an answer: the forms that callers give, and bounds."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

from backends.openai.requests.costly_shapes import check_cost, check_repeats
from budget.errors import InvalidRequest

MAX_GRAMMAR_BYTES: Final = 256 << 10
"""llama-server takes minutes for one of 200,000 alternatives, and serves no other request meanwhile."""
MAX_GRAMMAR_DEPTH: Final = 1000
"""Nested groups; llama-server takes some 13,000 and ends at 60,000, and every caller's answer with it."""
MAX_SCHEMA_DEPTH: Final = 100
MAX_REFERRED_DEPTH: Final = 1000
"""Levels of a schema with those that references lead to; llama-server takes 6,000 and ends at 15,000."""
MAX_SCHEMA_VALUES: Final = 20_000
"""Its time for an enumeration grows with the square; 30,000 values take half a minute."""

_DEFINITIONS: Final = {"$defs", "definitions"}
_WRAPPER: Final = {"name", "schema", "strict", "description"}
_IN_TEXT: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*')


def response_format(option: str, given: Any) -> Mapping[str, Any]:
    """The field `response_format` of a schema in any of its forms, or of a `response_format` itself.

    Raises:
        InvalidRequest: there is no schema in it, or one that is nested too deeply.
    """
    if option == "response_format" and given.get("type") != "json_schema":
        check_depth(given)
        return dict(given)
    name, strict, schema = "answer", True, given
    if schema.get("type") == "json_schema":
        schema = schema.get("json_schema")
    if isinstance(schema, Mapping) and "schema" in schema and schema.keys() <= _WRAPPER:
        name, strict = schema.get("name") or name, schema.get("strict", strict)
        schema = schema["schema"]
    elif isinstance(schema, Mapping) and option == "response_format" and schema.keys() <= _WRAPPER:
        schema = None
    if not isinstance(schema, Mapping):
        raise InvalidRequest(
            f"{option} holds no schema.",
            hint='Give the schema itself as json_schema, or {"name": ..., "schema": {...}}.',
            option=option,
        )
    check_depth(schema)
    check_references(schema)
    fields = {"name": name, "schema": dict(schema), "strict": strict}
    return {"type": "json_schema", "json_schema": fields}


def check_grammar(grammar: str) -> None:
    """Refuse a grammar that would end the engine of all its callers.

    Raises:
        InvalidRequest: it is too large, nests groups too deeply, or takes minutes (`check_repeats`).
    """
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise _too_large("grammar", f"{len(grammar)} characters", f"{MAX_GRAMMAR_BYTES}")
    check_repeats(grammar, "grammar")
    if grammar.count("(") <= MAX_GRAMMAR_DEPTH:
        return
    depth = deepest = 0
    for bracket in re.findall(r"[()]", _IN_TEXT.sub("", grammar)):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_GRAMMAR_DEPTH:
        raise _too_large("grammar", f"groups in {deepest} levels", f"{MAX_GRAMMAR_DEPTH} levels")


def check_depth(value: Any, what: str = "schema") -> None:
    """Refuse a schema, or what may hold one, that is nested too deeply.

    Raises:
        InvalidRequest: it is, has too many values, or takes minutes to read (`check_cost`).
    """
    level, values = [value], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        values += sum(map(len, level))
        for part in level:
            check_cost(part, what)
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            break
    else:
        raise _too_large(what, f"over {MAX_SCHEMA_DEPTH} levels", f"{MAX_SCHEMA_DEPTH} levels")
    if values > MAX_SCHEMA_VALUES and what != "extra":
        raise _too_large(what, f"{values} values", f"{MAX_SCHEMA_VALUES}")


def check_references(root: Mapping[str, Any], what: str = "schema") -> None:
    """Refuse a schema whose references (`$ref`) lead too deep, as llama.cpp follows them: each once.

    Raises:
        InvalidRequest: they do.
    """
    seen: set[str] = set()
    todo: list[tuple[Any, int]] = [(root, 1)]
    while todo:
        value, depth = todo.pop()
        if depth > MAX_REFERRED_DEPTH:
            levels = f"over {MAX_REFERRED_DEPTH} levels of references"
            raise _too_large(what, levels, f"{MAX_REFERRED_DEPTH} levels")
        if isinstance(value, Mapping) and isinstance(ref := value.get("$ref"), str):
            if ref not in seen:
                seen.add(ref)
                todo.append((referred(root, ref), depth + 1))
            continue
        inner = _inner(value, but=_DEFINITIONS if value is root else ())
        todo.extend((item, depth + 1) for item in reversed(inner))


def referred(root: Any, ref: str) -> Any:
    """The part of a schema that a reference leads to; None where it leads nowhere."""
    found = root
    for step in ref.partition("#/")[2].split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _inner(value: Any, but: Container[str] = ()) -> list[Any]:
    if isinstance(value, Mapping):
        items: Iterable[Any] = (item for name, item in value.items() if name not in but)
    else:
        items = value if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, Mapping | list | tuple)]


def _too_large(what: str, found: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(
        f"the {what} has {found}; at most {allowed} are sent to an engine, which a larger one can end.",
        option=what,
    )
