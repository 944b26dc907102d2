"""What llama.cpp leaves out of a JSON schema with a line in its log at most, as seen with real answers.

For each node it takes the first branch that fits; keywords that this branch does not read are dropped. Of
`oneOf` it makes `anyOf`, which is not counted here. A pattern with anything in it that it does not know is
dropped as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final

from backends.openai.requests.schemas import referred, response_format

SCHEMAS: Final = ("json_schema", "response_format")
"""The options that hold a schema."""
_LIMITS: Final = {
    "array": {"minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains"},
    "object": {
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "dependentRequired", "dependentSchemas",
        "unevaluatedProperties",
    },
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "any": {"not", "if", "then", "else", "allOf", "anyOf", "oneOf", "items", "prefixItems",
            "unevaluatedItems", "additionalItems"},
}  # fmt: skip
_LIMITING: Final = frozenset().union(*_LIMITS.values())
_READ: Final = {
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"minItems", "maxItems"},
}
_FORMATS: Final = re.compile(r"uuid[1-5]?|date|time|date-time")
_CODE: Final = r"u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}"
_IN_CLASS: Final = rf'[^\\\[\]]|\\(?:["\-\[\\\]nrt]|{_CODE})'
_ESCAPE: Final = rf'\\(?:["$()*+\-.?\[\\\]^{{|}}nrt]|{_CODE})'
_PIECE: Final = rf"[^\\^$\[(]|{_ESCAPE}|\[\^?(?:{_IN_CLASS})*\]|\((?!\?)|\(\?:"
_PATTERN: Final = re.compile(rf"\^(?:{_PIECE})*\$")
"""Patterns that llama.cpp holds an answer to."""


def relaxed_in(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The places of a request's schema that llama.cpp does not hold an answer to, as `$.path.keyword`."""
    for name in SCHEMAS:
        given = options.get(name)
        if isinstance(given, Mapping):
            field = response_format(name, given)
            schema = field.get("json_schema", {}).get("schema") or field.get("schema")
            return tuple(_Walk(schema).places()) if isinstance(schema, Mapping) else ()
    return ()


class _Walk:
    """Goes through a schema as llama.cpp does, each definition once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._seen: set[str] = set()
        self._later: list[tuple[Callable[[Any, str], Iterator[str]], Any, str]] = []
        """Definitions that were referred to. They may refer to others in a chain of any length."""

    def places(self) -> Iterator[str]:
        """What is dropped anywhere."""
        yield from self.at(self._root, "$")
        while self._later:
            walk, target, ref = self._later.pop(0)
            yield from walk(target, ref)

    def at(self, node: Any, path: str) -> Iterator[str]:
        """What is dropped at this node and below it."""
        if not isinstance(node, Mapping):
            return
        if isinstance(ref := node.get("$ref"), str):
            if ref not in self._seen:
                self._seen.add(ref)
                self._later.append((self.at, referred(self._root, ref), ref))
            read: set[str] = set()
        elif alternatives := node.get("oneOf") or node.get("anyOf"):
            yield from self._each(
                alternatives, f"{path}.{'oneOf' if node.get('oneOf') else 'anyOf'}"
            )
            read = {"oneOf" if node.get("oneOf") else "anyOf"}
        elif "const" in node or "enum" in node:
            read = set()
        else:
            kinds = node.get("type")
            read = set()
            for kind in kinds if isinstance(kinds, list) else [kinds]:
                read |= yield from self._typed(node, kind, path)
        for name in node:
            if name in _LIMITING and name not in read and _limits(name, node[name]):
                yield f"{path}.{name}"

    def _typed(
        self, node: Mapping[str, Any], kind: Any, path: str
    ) -> Generator[str, None, set[str]]:
        """Yields what is dropped below; returns the keywords that are read for this type."""
        extra = node.get("additionalProperties", True)
        if kind in {None, "object"} and ("properties" in node or extra is not True):
            return (yield from self._object(node, extra, path))
        if kind in {None, "object", "string"} and "allOf" in node:
            for number, part in enumerate(_list(node["allOf"])):
                yield from self._component(part, f"{path}.allOf[{number}]")
            return {"allOf"}
        if kind in {None, "array"} and ("items" in node or "prefixItems" in node):
            name = "items" if "items" in node else "prefixItems"
            yield from self._each(node[name], f"{path}.{name}")
            return {name, "minItems", "maxItems"}
        if kind in {None, "string"} and "pattern" in node:
            return {"pattern"} if _PATTERN.fullmatch(str(node["pattern"])) else set()
        if kind in {None, "string"} and _FORMATS.fullmatch(str(node.get("format"))):
            return {"format"}
        return _READ.get(kind if isinstance(kind, str) else "string", set())

    def _object(
        self, node: Mapping[str, Any], extra: Any, path: str
    ) -> Generator[str, None, set[str]]:
        properties = node.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        for name, inner in properties.items():
            yield from self.at(inner, f"{path}.properties.{name}")
        yield from self.at(extra, f"{path}.additionalProperties")
        known = all(isinstance(n, str) and n in properties for n in _list(node.get("required")))
        return {"properties", "additionalProperties", *(["required"] if known else [])}

    def _component(self, part: Any, path: str) -> Iterator[str]:
        part = part if isinstance(part, Mapping) else {}
        if isinstance(ref := part.get("$ref"), str):
            target = referred(self._root, ref)
            if ref not in self._seen and isinstance(target, Mapping):
                self._seen.add(ref)
                self._later.append((self._component, target, ref))
            return
        for number, inner in enumerate(_list(part.get("anyOf"))):
            yield from self._component(inner, f"{path}.anyOf[{number}]")
        properties = part.get("properties")
        for name, inner in properties.items() if isinstance(properties, Mapping) else ():
            yield from self.at(inner, f"{path}.properties.{name}")
        dropped = [n for n in part if n in _LIMITING - {"properties", "required", "anyOf"}]
        if part.get("type", "object") != "object":
            dropped.append("type")
        yield from (f"{path}.{name}" for name in dropped)

    def _each(self, items: Any, path: str) -> Iterator[str]:
        if isinstance(items, list | tuple):
            for number, item in enumerate(items):
                yield from self.at(item, f"{path}[{number}]")
        else:
            yield from self.at(items, path)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _limits(name: str, value: Any) -> bool:
    """Whether a keyword with this value says anything at all."""
    if value is None or value is False or value in ([], {}):
        return value is False and name in {"additionalProperties", "unevaluatedProperties"}
    return not (value is True and name != "uniqueItems") and not (
        name[:3] == "min" and value == 0 and name != "minimum"
    )
