"""What llama.cpp leaves out of a JSON schema is said in the reply, never silent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import Engine
from backends.openai import AsyncTransport, ChatRequest
from backends.openai.requests.relaxed_schemas import relaxed_in
from shim import Shim
from tests.engines.support import llama, running, until
from tests.processes import LIMIT_S


def _properties(**inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": inner, "required": list(inner)}


@pytest.mark.parametrize(
    ("schema", "relaxed"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["$.uniqueItems"]),
        ({"type": "integer", "multipleOf": 5}, ["$.multipleOf"]),
        ({"type": "integer", "minimum": 5, "exclusiveMaximum": 9}, []),
        ({"type": "number", "minimum": 5}, ["$.minimum"]),
        ({"minimum": 5}, ["$.minimum"]),
        ({"type": "string", "pattern": "^(?=a)b$"}, ["$.pattern"]),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["$.maxLength"]),
        ({"type": "string", "minLength": 1, "maxLength": 3}, []),
        ({"type": "string", "format": "date-time"}, []),
        ({"type": "string", "format": "email"}, ["$.format"]),
        ({"type": ["integer", "null"], "minimum": 3}, []),
        ({"enum": ["a", "b"], "pattern": "^a$"}, ["$.pattern"]),
        ({"type": "array", "minItems": 2, "uniqueItems": False}, []),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}},
            ["$.prefixItems"],
        ),
        (
            _properties(a={"type": "array", "items": {"type": "number", "maximum": 3}}),
            ["$.properties.a.items.maximum"],
        ),
        ({"type": "object", "properties": {}, "required": ["x"]}, ["$.required"]),
        ({"type": "object", "patternProperties": {"^a$": {}}}, ["$.patternProperties"]),
        ({"anyOf": [{"type": "integer", "not": {"const": 3}}]}, ["$.anyOf[0].not"]),
        (
            {"allOf": [{"type": "integer"}, {"minimum": 900}]},
            ["$.allOf[0].type", "$.allOf[1].minimum"],
        ),
        (
            {
                "$defs": {"n": {"type": "number", "minimum": 1, "$comment": {"x": 1}}},
                **_properties(a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n", "maximum": 3}),
            },
            ["$.properties.b.maximum", "#/$defs/n.minimum"],
        ),
        (
            {
                "$defs": {"t": _properties(next={"$ref": "#/$defs/t"})},
                "$ref": "#/$defs/t",
                "title": "x",
                "x-order": 3,
            },
            [],
        ),
    ],
)
def test_what_a_schema_asks_for_in_vain_is_named_with_its_path(
    schema: dict[str, Any], relaxed: list[str]
) -> None:
    """By keyword; what is honoured, and what limits nothing, is not named."""
    assert list(relaxed_in({"json_schema": schema})) == relaxed


def test_schemas_are_looked_through_in_every_form() -> None:
    """In OpenAI's wrapper and as `json_object`; no schema has nothing relaxed."""
    schema = {"type": "integer", "multipleOf": 5}
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for options in (
        {"response_format": wrapped},
        {"json_schema": {"name": "x", "schema": schema}},
        {"response_format": {"type": "json_object", "schema": schema}},
    ):
        assert relaxed_in(options) == ("$.multipleOf",)
    assert relaxed_in({"response_format": {"type": "text"}}) == ()
    assert relaxed_in({"max_tokens": 3}) == ()


_PATTERNS = [
    r"^\d+$", r"^[\w-]+$", r"^a\.b$", r"^a\/b$", r"^(?:a|b)$", r"^(?i)a$", r"^a{2,3}$", r"^a|b$", "a",
    "^a", "a$", r"^\bx$", r"^\u0041\x41$", r"^[^\d]$", r"^(a)\1$", r"^\p{L}$", r"^\-$", r"^[a\]]$", r"^\t$",
    r"^(?<n>a)$", r"^a*?$", r"^[\.]$", r"^[.]$", r"^a(?!b)$", r"^\$$", r"^a^b$", r"^[[:alpha:]]$", r"^\@$",
    r"^[^a-c]$", r"(^a$)|(^b$)", r"^\[\($",
]  # fmt: skip


def _said(engine: Engine, pattern: str) -> Callable[[], Awaitable[bool]]:
    """Asks whether the engine's log names this pattern."""

    async def said() -> bool:
        return any(f"pattern {pattern} is not supported" in line for line in engine.log_tail)

    return said


@pytest.mark.real
def test_patterns_that_llama_cpp_drops_are_those_that_are_named(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Its own log says for each which it did not understand; the rest is held to."""

    async def scenario() -> None:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine):
            transport = AsyncTransport()
            for pattern in _PATTERNS:
                schema = {"type": "string", "pattern": pattern}
                request = ChatRequest("x", {"json_schema": schema, "max_tokens": 16, "seed": 1})
                answer = await transport.chat(engine.endpoint, request)
                named = relaxed_in(request.options) == ("$.pattern",)
                # The log comes by another way than the answer.
                told = await until(_said(engine, pattern), within_s=LIMIT_S if named else 0.02)
                assert told == named, pattern
                if not named and answer.finish_reason == "stop":
                    assert re.search(pattern.replace("[[", r"[\["), answer.content[1:-1]) or (
                        "\\" in answer.content
                    )
            await transport.aclose()

    asyncio.run(scenario())


@pytest.mark.real
def test_a_reply_says_what_its_schema_asked_for_in_vain(tiny_models: dict[str, Path]) -> None:
    """From a call and from a stream; a schema that is held to has nothing relaxed."""
    config = {
        "budget": {"device": "host", "limit": "600MiB"},
        "models": {"m": {"path": str(tiny_models["producer"]), "context": 512}},
    }
    loose = {"type": "integer", "multipleOf": 5}
    with Shim(config) as shim:
        assert shim.chat("m", "x", json_schema=loose, max_tokens=4).relaxed == ("$.multipleOf",)
        with shim.stream("m", "x", json_schema=loose, max_tokens=4) as stream:
            list(stream)
        assert stream.reply.relaxed == ("$.multipleOf",)
        tight = {"type": "integer", "minimum": 5}
        assert shim.chat("m", "x", json_schema=tight, max_tokens=4).relaxed == ()
