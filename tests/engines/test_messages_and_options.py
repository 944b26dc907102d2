"""Messages and options as programs have them: understood, or named with what was meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from backends.base import Capabilities, Endpoint
from backends.openai import ChatRequest
from backends.openai.chat_messages import checked_messages
from backends.openai.options import OPTIONS, split_options, wire_options
from backends.openai.protocol import chat_body
from backends.openai.requests.relaxed_schemas import relaxed_in
from backends.openai.requests.schemas import (
    MAX_GRAMMAR_DEPTH,
    MAX_REFERRED_DEPTH,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_VALUES,
)
from backends.openai.resume import can_resume
from budget.errors import InvalidRequest
from shim.calls.options.chat_options import ChatOptions
from shim.calls.options.own_options import OWN_OPTIONS, timeouts_of
from shim.config import Config

LLAMA = Endpoint("http://e", "m", "llama.cpp", "/s", capabilities=Capabilities(grammar=True))
FAR = Endpoint("http://far", "m", "openai")
_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"


def _body(options: dict[str, Any], endpoint: Endpoint = LLAMA) -> dict[str, Any]:
    request = ChatRequest("x", split_options(options)[1])
    body: dict[str, Any] = json.loads(chat_body(endpoint, request, stream=False))
    return {name: value for name, value in body.items() if name not in {"model", "messages"}}


class _Dumped:
    """As a client library's message."""

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]:
        assert exclude_none
        return {"role": "assistant", "tool_calls": [_CALL]}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        (
            {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None},
            {"role": "assistant", "content": "x"},
        ),
        ({"role": "assistant", "content": "x", "tool_calls": []}, {"role": "assistant", "content": "x"}),
        (
            {"role": "assistant", "tool_calls": [_CALL]},
            {"role": "assistant", "tool_calls": [_CALL], "content": None},
        ),
        (_Dumped(), {"role": "assistant", "tool_calls": [_CALL], "content": None}),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                ],
            },
        ),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": ["a"]}, {"role": "user", "content": [{"type": "text", "text": "a"}]}),
        (
            {"role": "user", "content": [{"text": "a"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ),
    ],
)  # fmt: skip
def test_messages_are_understood_as_agents_send_them_back(given: Any, sent: dict[str, Any]) -> None:
    """Null content and fields, calls as objects, a client library's messages, other names of roles."""
    assert checked_messages([given]) == [sent]


def test_a_function_of_2023_and_its_result_are_a_call_and_its_result() -> None:
    """`function_call` and role `function`, with one id for both; `developer` stays for remote ones."""
    call = {"name": "f", "arguments": "{}"}
    first, second = checked_messages(
        [
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "f", "content": "3"},
        ]
    )
    assert first["tool_calls"] == [{"id": "call_0", "type": "function", "function": call}]
    assert second == {"role": "tool", "name": "f", "content": "3", "tool_call_id": "call_0"}
    assert (
        checked_messages([{"role": "developer", "content": "x"}], "openai")[0]["role"]
        == "developer"
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": {"x": 1}}, "write an object as JSON"),
        ({"role": "user", "content": [1]}, "a part of content is int"),
        ({"role": "user", "content": [{"x": 1}]}, "has no type"),
        ({"role": "user"}, "NoneType"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, "no call"),
        ({"role": "assistant", "content": None, "tool_calls": 1}, "int instead of a list"),
        ("x", "str instead of an object"),
        ({"role": "user", "content": "x", "images": ["aGk="]}, "would not be seen"),
        ({"role": ["user"], "content": "x"}, "role"),
    ],
)
def test_messages_that_are_none_are_refused_in_words(message: Any, words: str) -> None:
    """With their position, and before anything is sent."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        checked_messages([{"role": "user", "content": "x"}, message])
    assert caught.value.facts["position"] == 1


def test_what_means_nothing_is_left_out_and_other_names_are_understood() -> None:
    """-1 is no limit and any seed; `max_completion_tokens` is `max_tokens`; None is not given."""
    assert _body({"max_tokens": -1, "seed": -1, "temperature": None}) == {}
    assert _body({"max_completion_tokens": 7}) == {"max_tokens": 7}
    with pytest.raises(InvalidRequest, match="max_tokens is given twice"):
        split_options({"max_tokens": 7, "max_completion_tokens": 7})


def test_numbers_of_numpy_are_numbers() -> None:
    """As options, inside of schemas, and as keepwarm's own options."""
    options = {
        "max_tokens": np.int64(5),
        "temperature": np.float32(0.5),
        "logprobs": np.bool_(1),
        "json_schema": {"type": "integer", "minimum": np.int32(3)},
        "extra": {"bias": np.float64(1)},
    }
    body = _body(options)
    schema = body.pop("response_format")["json_schema"]["schema"]
    assert schema == {"type": "integer", "minimum": 3}
    assert body == {"max_tokens": 5, "temperature": 0.5, "logprobs": True, "bias": 1.0}
    own, _ = split_options({"priority": np.int8(2), "deadline_s": np.float32(2)}, OWN_OPTIONS)
    assert own == {"priority": 2, "deadline_s": 2.0}
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        _body({"extra": {"x": np.zeros(2)}})


def _read(options: dict[str, Any]) -> None:
    own, rest = split_options(options, OWN_OPTIONS)
    timeouts_of(Config.from_mapping({"models": {"m": {"url": "http://far"}}}).models["m"], own)
    wire_options(LLAMA, rest)


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("name", ["max_tokens", "temperature", "top_p", "seed", *OWN_OPTIONS])
def test_a_number_without_a_float_or_a_text_is_the_callers_mistake(name: str, digits: int) -> None:
    """By the option's name, not by Python's limits of conversion."""
    with pytest.raises(InvalidRequest, match=name):
        _read({name: 10**digits})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("n", "call once for each"),
        ("logit_bias", 'extra={"logit_bias"'),
        ("temprature", "temperature?"),
        ("max_new_tokens", "max_tokens?"),
        ("timeout", "deadline_s?"),
        ("deadline", "deadline_s?"),
        ("functions", "tools?"),
        ("stream", "Call stream()"),
        ("options", "by itself"),
        ("keep_alive", "keep_alive in its table"),
        ("num_ctx", "context in its table"),
        ("think", "chat_template_kwargs"),
        ("reasoning_effort", "chat_template_kwargs"),
        ("extra_body", "extra?"),
    ],
)
def test_an_unknown_option_is_named_with_what_was_meant(name: str, hint: str) -> None:
    """Before a model is loaded for it."""
    with pytest.raises(InvalidRequest, match=f"unknown option '{name}'") as caught:
        split_options({"max_tokens": 3, name: 1}, OWN_OPTIONS)
    assert hint in caught.value.hint
    assert "deadline_s" in str(caught.value.facts["allowed"])


def test_another_call_names_its_own_options_alone() -> None:
    """Vectors take no options of a chat, and `extra` is none of theirs."""
    with pytest.raises(InvalidRequest) as caught:
        split_options({"dimensions": 4}, OWN_OPTIONS, ())
    assert caught.value.facts["allowed"] == list(OWN_OPTIONS)
    assert "extra" not in caught.value.hint
    with pytest.raises(InvalidRequest, match="temperature"):
        split_options({"temperature": 0}, OWN_OPTIONS, ())


@pytest.mark.parametrize("given", [5, None, b"hi", {"role": "user"}, [], iter(())])
def test_messages_of_another_type_are_the_callers_mistake(given: Any) -> None:
    """Whether they are looked at for a resumption or for the body first; what was given is named."""
    can_resume(ChatRequest(given))  # Decides without an error; the body refuses it.
    with pytest.raises(InvalidRequest, match="messages is") as caught:
        checked_messages(given)
    assert "role" in caught.value.hint


@pytest.mark.parametrize(
    "tool",
    [
        {},
        {"type": "function"},
        {"type": "function", "function": {"name": ""}},
        {"type": "function", "function": {"name": 3}},
        {"type": "function", "function": {"name": "f", "parameters": "x"}},
        {"name": "f"},
        "f",
    ],
)
def test_malformed_tools_are_the_callers_mistake(tool: Any) -> None:
    """Refused with the form that is right, before they are sent."""
    with pytest.raises(InvalidRequest, match="option tools") as caught:
        _body({"tools": [tool]})
    assert "function" in str(caught.value.facts["allowed"])


_SCHEMA = {"type": "object", "properties": {"schema": {"type": "string"}}}


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": _SCHEMA},
        {"json_schema": {"name": "x", "schema": _SCHEMA}},
        {"json_schema": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
    ],
)
def test_a_schema_is_understood_in_every_form(options: dict[str, Any]) -> None:
    """Alone, in OpenAI's wrapper, in a whole `response_format`, without its wrapper in that."""
    sent = _body(options)["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", _SCHEMA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grammar": "root ::= x", "json_schema": {}}, "both given"),
        ({"response_format": {"type": "json_object"}, "json_schema": {}}, "both given"),
        ({"extra": {"max_tokens": 3}, "max_tokens": 4}, "extra holds max_tokens"),
        ({"extra": {"n_predict": 3}, "max_tokens": 4}, "extra holds n_predict"),
        ({"extra": {"json_schema": {}}, "grammar": "root ::= x"}, "and grammar is given"),
        ({"extra": {"n": 3}}, "keepwarm sets itself"),
        ({"response_format": {"type": "json_schema"}}, "holds no schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "holds no schema"),
        ({"json_schema": {"name": "x", "schema": 3}}, "holds no schema"),
        ({"tool_choice": "f"}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(options: dict[str, Any], words: str) -> None:
    """Two shapes, one thing under two names, a wrapper around nothing: never half of it."""
    with pytest.raises(InvalidRequest, match=words):
        _body(options)


def chain_of_references(count: int) -> dict[str, Any]:
    """A schema of objects that each hold the next, three levels for each."""
    held = {
        f"a{number}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{number + 1}"}}}
        for number in range(count)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**held, f"a{count}": {"type": "string"}}}


def test_a_request_that_could_end_an_engine_is_refused_before_it_is_sent() -> None:
    """Groups, schemas and references nested without end, grammars of megabytes, long enumerations."""
    deep: Any = {"type": "string"}
    for _ in range(MAX_SCHEMA_DEPTH):
        deep = {"items": deep}
    referring = chain_of_references(MAX_REFERRED_DEPTH // 3 + 1)
    wide = {"enum": [str(number) for number in range(MAX_SCHEMA_VALUES + 1)]}
    function = {"name": "f", "parameters": referring}
    around = "(" * (MAX_GRAMMAR_DEPTH + 1)
    for options in (
        {"grammar": f'root ::= {around}"a"{around.replace("(", ")")}'},
        {"grammar": "# " + "x" * (1 << 20)},
        {"json_schema": deep},
        {"response_format": {"type": "json_object", "schema": deep}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]},
        {"extra": {"grammar": f"root ::= {around}"}},
        {"extra": {"json_schema": deep}},
        {"json_schema": referring},
        {"extra": {"json_schema": referring}},
        {"tools": [{"type": "function", "function": function}]},
        {"json_schema": wide},
    ):
        with pytest.raises(InvalidRequest, match="at most"):
            _body(options)
    # Brackets in texts do not count, and a schema may refer to itself.
    assert _body({"grammar": f'root ::= "{around}" [(] # {around}'})
    assert _body({"json_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}})
    assert relaxed_in({"json_schema": chain_of_references(300)}) == ()
    circle: list[Any] = []
    circle.append(circle)
    for _ in range(5000):
        circle = [circle]
    with pytest.raises(InvalidRequest):
        _body({"extra": {"x": circle}})


def test_all_options_stand_in_one_document_and_in_the_signature() -> None:
    """`docs/options.md`, `ChatOptions` and what is checked name the same options."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", _DOCUMENT.read_text(), re.MULTILINE)
    documented = {name for name, _ in rows}
    known = {*OPTIONS, *OWN_OPTIONS, "max_completion_tokens"}
    assert documented == known == set(get_type_hints(ChatOptions))
    said = {name: may.replace("\\|", "|").replace("`", "") for name, may in rows}
    for name, (_, may) in OPTIONS.items():
        assert said[name].startswith(may.replace("`", "")), name
