"""What the worker does without a model: texts of stop, characters in parts, and bodies of requests."""

from __future__ import annotations

from typing import Any

import pytest

from backends.llama.binding.answering import Text
from backends.llama.binding.binding_engine import check_binding_args
from backends.llama.binding.chat_jobs import read_chat
from backends.llama.binding.native_model import Refused, pieces
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from shim.config.schema.kind_keys import keys_of

MESSAGES = [{"role": "user", "content": "Hi"}]


def said(parts: list[bytes], *stop: str) -> tuple[list[str], bool]:
    """What is said after each part, the end included, and whether a text of `stop` ended it."""
    text = Text(stop)
    found = [text.add(part) for part in parts]
    return ([*found, "" if text.stopped else text.add(b"", last=True)], text.stopped)


def test_a_text_of_stop_is_found_across_pieces_and_never_said() -> None:
    """Its beginning is held back until it is clear what it is."""
    assert said([b"one EN", b"D two"], "END") == (["one ", "", ""], True)
    assert said([b"one EN", b"TRY"], "END") == (["one ", "ENTRY", ""], False)
    assert said([b"one EN"], "END") == (["one ", "EN"], False)


def test_the_first_of_several_texts_of_stop_ends_an_answer() -> None:
    """The order in which they are given does not matter."""
    assert said([b"a; b. c"], ".", ";") == (["a", ""], True)


def test_a_character_in_two_tokens_is_said_whole() -> None:
    """Half of it is held back; what never becomes one is shown as damage."""
    smile = "\N{GRINNING FACE}".encode()
    assert said([smile[:2], smile[2:]]) == (["", "\N{GRINNING FACE}", ""], False)
    assert said([smile[:2]]) == (["", "\N{REPLACEMENT CHARACTER}"], False)


def test_tokens_are_evaluated_in_parts_of_a_batch() -> None:
    """None is left out, and none comes twice."""
    assert list(pieces([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]


def test_a_body_is_read_with_the_defaults_of_llama_server() -> None:
    """A field that is left out or null is not given."""
    job = read_chat({"messages": MESSAGES, "stop": "x", "seed": -1, "temperature": None})
    assert (job.stop, job.streamed, job.sampling.temperature) == (("x",), False, 0.8)
    assert job.sampling.seed == 0xFFFFFFFF
    assert read_chat({"messages": MESSAGES, "max_tokens": 3}).max_tokens == 3


def test_a_schema_becomes_a_grammar() -> None:
    """By llama-cpp-python's own converter."""
    shape = {"type": "json_schema", "json_schema": {"schema": {"enum": ["spam", "ham"]}}}
    grammar = read_chat({"messages": MESSAGES, "response_format": shape}).sampling.grammar
    assert "root ::=" in grammar
    assert "spam" in grammar


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "messages"),
        ({"messages": MESSAGES, "logprobs": True, "tools": []}, "logprobs, tools"),
        ({"messages": MESSAGES, "temperature": "warm"}, "not allowed"),
        (
            {"messages": MESSAGES, "response_format": {"type": "json_object", "schema": 3}},
            "JSON schema",
        ),
    ],
)
def test_what_the_worker_does_not_know_is_refused_by_name(body: Any, words: str) -> None:
    """Never a silent other answer."""
    with pytest.raises(Refused, match=words):
        read_chat(body)


@pytest.mark.parametrize("name", ["mmproj", "draft_model", "lora", "extra"])
def test_what_needs_llama_server_is_refused_by_its_key(name: str) -> None:
    """Where it was chosen by itself, the configuration may hold such keys."""
    value: Any = ("x",) if name in ("lora", "extra") else "x"
    with pytest.raises(ConfigError, match="engine_args" if name == "extra" else name):
        check_binding_args(EngineArgs(n_ctx=64, **{name: value}))


def test_its_keys_are_those_of_llama_cpp_without_those_of_its_server() -> None:
    """A key that is added to llama.cpp holds here, too, unless it is on the list."""
    lacks = keys_of("llama.cpp", remote=False) - keys_of("llama-cpp-python", remote=False)
    assert lacks == {"slots", "mmproj", "draft_model", "lora", "engine_args", "llama_server"}
