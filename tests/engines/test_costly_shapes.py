"""Shapes that would hold an engine for minutes, and every caller's answer with it, are not sent."""

from __future__ import annotations

from typing import Any

import pytest

from backends.openai.requests.costly_shapes import (
    MAX_EQUAL_OPTIONAL,
    MAX_OPTIONAL_PROPERTIES,
    check_repeats,
)
from backends.openai.requests.schemas import check_grammar, response_format
from budget.errors import InvalidRequest

MANY = MAX_EQUAL_OPTIONAL + 1


@pytest.mark.parametrize("part", ['"a"?', "[a-z]*", "ws?", '("a" | "b")*', '"a"{0,3}', '"a"{,3}'])
def test_one_optional_part_many_times_in_a_row_is_refused(part: str) -> None:
    """The error names the part, and the bound itself is sent."""
    with pytest.raises(InvalidRequest, match="times in a row") as caught:
        check_grammar("root ::= " + " ".join([part] * MANY))
    assert caught.value.facts["part"] == part
    check_grammar("root ::= " + " ".join([part] * MAX_EQUAL_OPTIONAL))


def test_different_optional_parts_are_sent() -> None:
    """A thousand of them cost an engine less than a second; so does one that is bounded in its text."""
    check_grammar("root ::= " + " ".join(f'"k{i}"?' for i in range(1000)))
    check_grammar('root ::= "a"{0,500}\n' + 'ws ::= [ \\t]*\nx ::= ws "a" ws\n' * 500)


@pytest.mark.parametrize("text", ["[", '"', "x(", "a", "\\", "{0,", '"a? [', "-"])
def test_no_grammar_takes_long_to_look_at(text: str) -> None:
    """The look at a long one comes to an end; a quadratic one would take an hour."""
    check_repeats("?" * MANY + text * ((64 << 10) // len(text)), "grammar")


def _optional(count: int, required: int = 0) -> dict[str, Any]:
    names = [f"k{i}" for i in range(count)]
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names[:required],
    }


@pytest.mark.parametrize(
    "schema",
    [
        _optional(MAX_OPTIONAL_PROPERTIES + 1),
        {"type": "array", "items": _optional(MAX_OPTIONAL_PROPERTIES + 2, required=1)},
        {"type": "string", "pattern": "^" + "(a|b)*" * MANY + "$"},
    ],
)
def test_schemas_that_take_minutes_are_refused(schema: dict[str, Any]) -> None:
    """Wherever the costly part stands."""
    with pytest.raises(InvalidRequest, match="minutes"):
        response_format("json_schema", schema)


def test_many_required_properties_are_sent() -> None:
    """Only those count that may be left out."""
    count = MAX_OPTIONAL_PROPERTIES * 2
    asked = response_format("json_schema", _optional(count, required=MAX_OPTIONAL_PROPERTIES))
    assert len(asked["json_schema"]["schema"]["properties"]) == count
