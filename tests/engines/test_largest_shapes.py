"""The largest grammars and schemas that are sent leave a real llama-server alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.openai.requests.schemas import MAX_GRAMMAR_DEPTH, MAX_REFERRED_DEPTH, MAX_SCHEMA_DEPTH
from budget.errors import KeepwarmError
from shim import Shim
from tests.engines.test_messages_and_options import chain_of_references


@pytest.mark.real
def test_an_engine_survives_the_largest_shapes_that_are_sent(tiny_models: dict[str, Path]) -> None:
    """Groups, lists and objects at their deepest; afterwards the same engine serves a plain call."""
    config = {
        "budget": {"device": "host", "limit": "600MiB"},
        "models": {"m": {"path": str(tiny_models["producer"]), "context": 512}},
    }
    lists: Any = {"type": "string"}
    objects: Any = {"type": "string"}
    for _ in range(MAX_SCHEMA_DEPTH - 1):
        lists = {"type": "array", "items": lists}
    for _ in range((MAX_SCHEMA_DEPTH - 1) // 2):
        objects = {"type": "object", "properties": {"a": objects}, "required": ["a"]}
    opening, closing = "(" * MAX_GRAMMAR_DEPTH, ")" * MAX_GRAMMAR_DEPTH
    shapes: list[dict[str, Any]] = [
        {"grammar": f'root ::= {opening}"a"{closing}'},
        {"grammar": f'root ::= {opening}"a"{closing}*'},
        {"json_schema": lists},
        {"json_schema": objects},
        {"json_schema": chain_of_references(MAX_REFERRED_DEPTH // 3 - 1)},
        {"json_schema": {"type": "array", "items": {"const": 1}, "minItems": 10**9}},
    ]
    with Shim(config) as shim:
        engine = shim.chat("m", "x", max_tokens=2).residency.engine
        for shape in shapes:
            try:
                shim.chat("m", "x", max_tokens=4, **shape)
            except KeepwarmError as error:
                assert error.fault == "caller", error
        last = shim.chat("m", "x", max_tokens=2).residency
    assert (last.engine, last.cold) == (engine, False)
