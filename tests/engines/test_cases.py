"""Answers of endpoints as they were seen in the field, each with what is right: `cases/*.json`."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

import budget.errors as errors
from backends.openai import Completion, assemble
from backends.openai.answers.reading import StreamReader
from backends.openai.masking import NO_SECRETS
from backends.openai.protocol import parse_completion, parse_embeddings
from budget.errors import KeepwarmError
from tests.engines.test_odd_fields import FAR, exchange

_CASES = Path(__file__).parent / "cases"


def _loaded(name: str) -> list[Any]:
    cases = json.loads((_CASES / name).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["case"]) for case in cases]


def _stream(chunks: list[str], size: int | None) -> Completion:
    """The answer that these chunks make, fed as they are or in pieces of `size` bytes."""
    parts = [chunk.encode() for chunk in chunks]
    if size is not None:
        whole = b"".join(parts)
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    reader = StreamReader(FAR, NO_SECRETS, "text/html")
    deltas = []
    for part in parts:
        deltas += reader.feed(part)
        if reader.done:
            break
    else:
        deltas += reader.ended()
    return assemble(deltas)


def _names(expected: str) -> tuple[type[KeepwarmError], ...]:
    """The kinds of error that a case's words name; any of ours where they name none."""
    words = expected.replace(",", " ").replace(":", " ").split()
    found = tuple(getattr(errors, word) for word in words if hasattr(errors, word))
    return found or (KeepwarmError,)


def _said_by_server(case: dict[str, Any]) -> list[str]:
    """What the error has to repeat: the server's own message, and every number of the expectation."""
    sent = json.dumps(case.get("body", "".join(case.get("chunks", ()))))
    numbers = [word for word in case["expect"]["error"].split() if word.isdigit()]
    if "words" not in case["expect"]["error"]:
        return numbers
    return [*numbers, sent.replace("\\", "").partition('"message": "')[2].partition('"')[0]]


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("case", _loaded("streams.json"))
def test_every_stream_seen_in_the_field_is_read_as_it_is_meant(
    case: dict[str, Any], size: int | None
) -> None:
    """However the network cut it: its content, its calls of tools, or an error with the server's words."""
    expect = case["expect"]
    if "error" in expect:
        with pytest.raises(_names(expect["error"])) as caught:
            _stream(case["chunks"], size)
        for word in _said_by_server(case):
            assert word in str(caught.value)
        return
    answer = _stream(case["chunks"], size)
    found = {
        "content": answer.content,
        "reasoning": answer.reasoning,
        "finish": answer.finish_reason,
        "tool_calls": [
            [call["function"]["name"], json.loads(call["function"]["arguments"])]
            for call in answer.tool_calls
        ],
    }
    assert {name: found[name] for name in expect} == expect


@pytest.mark.parametrize("case", _loaded("bodies.json"))
def test_every_body_seen_in_the_field_is_read_as_it_is_meant(case: dict[str, Any]) -> None:
    """Chats and embeddings: parts of content, errors of status 200, vectors in every form."""
    expect, raw = case["expect"], json.dumps(case["body"]).encode()
    count = len(case["body"].get("data", ()))
    if "error" in expect:
        with pytest.raises(_names(expect["error"])) as caught:
            exchange().parsed(
                raw, lambda b: parse_embeddings(b, count) if count else parse_completion(b)
            )
        for word in _said_by_server(case):
            assert word in str(caught.value)
    elif "vectors" in expect:
        found = exchange().parsed(raw, lambda b: parse_embeddings(b, count)).vectors
        # As 32-bit floats: what base64 holds is no more exact.
        assert [_floats(vector) for vector in found] == [_floats(v) for v in expect["vectors"]]
    else:
        answer = exchange().parsed(raw, parse_completion)
        assert (answer.content, answer.reasoning) == (expect["content"], expect["reasoning"])


def _floats(vector: Any) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
