"""Calls of tools as answers carry them: whole, or in pieces that belong together by index and id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from backends.openai.answers.fields import WrongField, a_text, an_object, objects
from traces.text import clean


def read_calls(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The calls, or pieces of calls, of one message, with every field of its declared type.

    `index` is an integer or left out, `id`, `type` and the function's `name` and `arguments` are strings;
    arguments that are an object are written as JSON.

    Raises:
        WrongField: one is not a call.
    """
    return tuple(_read(call) for call in objects(value, "tool_calls"))


def _read(call: Mapping[str, Any]) -> Mapping[str, Any]:
    read = {name: item for name, item in call.items() if item is not None}
    index = read.pop("index", None)
    if index is not None:
        if not isinstance(index, int) or isinstance(index, bool):
            raise WrongField("index of a tool call", index, "an integer")
        read["index"] = index
    if isinstance(read.get("id"), int):
        read["id"] = str(read["id"])
    for name in read.keys() & {"id", "type"}:
        a_text(read[name], f"{name} of a tool call")
    if "function" in read:
        read["function"] = _function(an_object(read["function"], "function of a tool call"))
    return read


def _function(function: Mapping[str, Any]) -> Mapping[str, Any]:
    read = {name: item for name, item in function.items() if item is not None}
    if isinstance(read.get("arguments"), Mapping | list):
        read["arguments"] = json.dumps(read["arguments"], ensure_ascii=False)
    for name, item in read.items():
        a_text(item, f"{name} of a tool call's function")
    return read


class _Calls:
    """Calls in the order of their first pieces."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def to(self, piece: Mapping[str, Any]) -> dict[str, Any]:
        """The call that a piece belongs to.

        The index decides, and where there is none the call that came last. A new id begins a new call:
        some servers give every call the index 0.
        """
        index, name = piece.get("index"), piece.get("id")
        last = self.found[-1] if self.found else None
        call = last if index is None else self._by_index.get(index)
        if call is None or (name and call.get("id", name) != name):
            call = {"type": "function", "function": {"name": "", "arguments": ""}}
            self.found.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def whole_calls(pieces: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The calls that the pieces of a stream make."""
    calls = _Calls()
    for piece in pieces:
        call = calls.to(piece)
        call.update({key: piece[key] for key in ("id", "type") if piece.get(key)})
        function = call["function"]
        for key, text in (piece.get("function") or {}).items():
            before = function.get(key, "")
            # Some servers repeat the name in every piece.
            if key != "name" or text != before:
                function[key] = before + text
    return tuple(map(readable, calls.found))


def readable(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A whole call without halves of characters."""
    read = {n: clean(item) if isinstance(item, str) else item for n, item in call.items()}
    if "function" in call:
        read["function"] = {name: clean(item) for name, item in call["function"].items()}
    return read
