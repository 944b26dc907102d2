"""The options of a chat call: their names, their allowed values, and their form on the wire."""

from __future__ import annotations

import difflib
import numbers
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.requests.schemas import (
    check_depth,
    check_grammar,
    check_references,
    response_format,
)
from budget.errors import InvalidRequest

_RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n"})
_LLAMA_CPP = "llama.cpp"

Check = Callable[[Any], bool]


def _number(
    low: float,
    high: float = sys.float_info.max,
    kinds: tuple[type[int] | type[float], ...] = (int, float),
) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return check


_integer = partial(_number, kinds=(int,))


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)


def _is_tools(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_tool, value))


def _is_tool(tool: Any) -> bool:
    """A function with a name and a schema, or a tool of the endpoint's own kind."""
    if not isinstance(tool, Mapping) or not isinstance(tool.get("type"), str):
        return False
    function = tool.get("function")
    if tool["type"] != "function":
        return True
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return False
    return bool(function["name"]) and isinstance(function.get("parameters") or {}, Mapping)


def _is_tool_choice(value: Any) -> bool:
    return value in ("auto", "none", "required") or isinstance(value, Mapping)


def _is_response_format(value: Any) -> bool:
    kinds = {"text", "json_object", "json_schema"}
    return isinstance(value, Mapping) and value.get("type") in kinds


OPTIONS: Mapping[str, tuple[Check, str]] = {
    "max_tokens": (_integer(1), "an integer >= 1, or -1 for no limit"),
    "temperature": (_number(0.0), "a number >= 0"),
    "top_p": (_number(0.0, 1.0), "a number from 0 to 1"),
    "top_k": (_integer(-1), "an integer >= -1"),
    "min_p": (_number(0.0, 1.0), "a number from 0 to 1"),
    "presence_penalty": (_number(-2.0, 2.0), "a number from -2 to 2"),
    "frequency_penalty": (_number(-2.0, 2.0), "a number from -2 to 2"),
    "seed": (_integer(0, 2**32 - 1), "an integer from 0 to 4294967295, or -1 for any"),
    "stop": (_is_stop, "a non-empty string or a list of them"),
    "response_format": (_is_response_format, 'an object with type "text|json_object|json_schema"'),
    "json_schema": (lambda v: isinstance(v, Mapping), "a JSON schema as an object"),
    "grammar": (lambda v: isinstance(v, str) and bool(v), "a GBNF grammar as a string"),
    "tools": (_is_tools, 'a list of {"type": "function", "function": {"name", "parameters"}}'),
    "tool_choice": (_is_tool_choice, 'one of "auto", "none", "required", or an object'),
    "logprobs": (lambda v: isinstance(v, bool), "true or false"),
    "top_logprobs": (_integer(0, 20), "an integer from 0 to 20"),
    "slot": (_integer(0), "an integer >= 0 (llama.cpp only)"),
    "cache_prompt": (lambda v: isinstance(v, bool), "true or false (llama.cpp only)"),
    "extra": (lambda v: isinstance(v, Mapping), "an object, passed to the endpoint as it is"),
}
"""Option name -> (check, the allowed values in words)."""

_ONLY_LLAMA_CPP = {"slot", "cache_prompt"}
_WRITTEN_OTHERWISE = {"json_schema", "response_format", "slot", "stop"}
_ALIASES: Final = {"max_completion_tokens": "max_tokens"}
_NO_BOUND: Final = {"max_tokens", "seed"}
"""Options whose -1 means that the engine chooses."""
_PLAIN: Final = frozenset({str, int, float, bool, dict, list, tuple})
_THINKING: Final = (
    'A chat template takes it by extra={"chat_template_kwargs": {"enable_thinking": False}}, an endpoint by'
    " the name that it knows, in extra."
)
_ELSEWHERE: Final = {
    "stream": "Call stream() for an answer in pieces.",
    "n": "One call has one answer; call once for each.",
    "model": "The model is the first argument.",
    "timeout": "Did you mean deadline_s?",
    "n_predict": "Did you mean max_tokens?",
    "num_predict": "Did you mean max_tokens?",
    "max_new_tokens": "Did you mean max_tokens?",
    "max_output_tokens": "Did you mean max_tokens?",
    "stop_sequences": "Did you mean stop?",
    "functions": "Did you mean tools?",
    "options": "Give each option by itself: temperature=0, seed=1.",
    "extra_body": "Did you mean extra?",
    "keep_alive": "It is a key of the model: keep_alive in its table of keepwarm.toml.",
    "num_ctx": "It is a key of the model: context in its table of keepwarm.toml.",
    "think": _THINKING,
    "enable_thinking": _THINKING,
    "reasoning_effort": _THINKING,
    "function_call": "Did you mean tool_choice?",
    "schema": "Did you mean json_schema?",
    "format": "Did you mean json_schema?",
}
"""Names that other programs use, and what serves here."""
_SHAPES: Final = ("grammar", "json_schema", "response_format")
"""Each says alone what shape the answer has."""
_SAME: Final = {"n_predict": "max_tokens", "max_completion_tokens": "max_tokens", "id_slot": "slot"}
"""Names of one thing in `extra`."""
_NEEDS = {
    "grammar": "grammar",
    "json_schema": "json_schema",
    "tools": "tools",
    "tool_choice": "tools",
}


class FixedOptions(dict[str, Any]):
    """Options that change no more: what a body says beside its messages is made once for each endpoint."""

    __slots__ = ("heads",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.heads: dict[Endpoint, bytes] = {}


def split_options(
    options: Mapping[str, Any], own_names: Sequence[str] = (), known: Collection[str] = OPTIONS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that `own_names` has, and those of the engine, under their names here, as plain values.

    `known` are the engine's: all of a chat, none of another call.

    What is None or says nothing is left out. `max_completion_tokens` is `max_tokens`; -1 is no limit, and
    any seed. NumPy's numbers are numbers.

    Raises:
        InvalidRequest: an option is unknown, or given under two names.
    """
    own: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for given, value in options.items():
        if value is None:
            continue
        name = _ALIASES.get(given, given)
        read = own if name in own_names else rest
        if name in read:
            raise InvalidRequest(f"{name} is given twice, also as {given}.", option=name)
        if read is rest and name not in known:
            raise unknown_option(name, own_names, known)
        if name in _NO_BOUND and value == -1:
            continue
        read[name] = value if type(value) in _PLAIN else plain_number(value)
    return own, rest


def shown(value: object) -> str:
    """The beginning of a value as Python writes it, for errors."""
    try:
        return repr(value)[:80]
    except ValueError:  # an integer of thousands of digits
        return "a huge number"


def plain_number(value: Any) -> Any:
    """Numbers of other libraries as Python's own; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    # A scalar of NumPy that is no number to Python (a boolean), a tensor of one element.
    return value.item() if getattr(value, "ndim", None) == 0 else value


def unknown_option(
    name: str, also: Iterable[str] = (), known: Iterable[str] = OPTIONS
) -> InvalidRequest:
    """The error of an option that is none here: the nearest one, and all there are."""
    allowed = [*known, *also]
    near = difflib.get_close_matches(name, allowed, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    if "extra" in allowed:
        passed = f'What the endpoint itself knows is passed with extra={{"{name}": ...}}. '
        hint = f"{_ELSEWHERE[name]} " if name in _ELSEWHERE else hint or passed
    return InvalidRequest(
        f"unknown option {name!r}.",
        hint=f"{hint}Allowed are: {', '.join(allowed)}.",
        option=name,
        allowed=allowed,
    )


def wire_options(endpoint: Endpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as fields of the request's body; those that are None are left out.

    Raises:
        InvalidRequest: an unknown option, a value that is not allowed, one that this endpoint cannot
            honour, or two that contradict each other. Facts: `option`, `allowed`.
    """
    body: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        _check(endpoint, name, value)
        if name == "grammar":
            check_grammar(value)
        elif name in {"tools", "extra"}:
            check_depth(value, name)
            for tool in value if name == "tools" else ():
                check_references((tool.get("function") or {}).get("parameters") or {}, name)
        if name in _WRITTEN_OTHERWISE:
            body.update(_field(name, value))
        elif name != "extra":
            body[name] = value
    if not options.keys().isdisjoint(_SHAPES):
        _check_shapes(options)
    if "tools" in body and not endpoint.capabilities.tools_in_template:
        _check_choice(endpoint, options.get("tool_choice"))
    if extra := options.get("extra"):
        _check_extra(options, extra)
        body.update(extra)
    if "id_slot" in body:
        _check_slot(endpoint, body["id_slot"])
    return body


def template_warnings(
    endpoint: Endpoint, options: Mapping[str, Any], *, unparsed: bool = False
) -> tuple[str, ...]:
    """What a reply has to say of how the model's template took a request, and the engine its answer."""
    can, warnings = endpoint.capabilities, []
    if not can.own_template:
        warnings.append(
            f"The file of {endpoint.name} has no chat template, as base models have none; the messages"
            " were written as ChatML."
        )
    if not can.tools_in_template and options.get("tools"):
        warnings.append(
            f"The chat template of {endpoint.name} has no place for tools; they were left out."
        )
    if unparsed:
        warnings.append(
            f"The answer of {endpoint.name} does not have the format of its chat template; it was asked"
            " for once more, and is given as it was generated."
        )
    return tuple(warnings)


def _check_choice(endpoint: Endpoint, choice: Any) -> None:
    if choice is not None and choice not in ("auto", "none"):
        raise InvalidRequest(
            f"tool_choice asks for a call, and the chat template of {endpoint.name} has no place for"
            " tools.",
            hint="Take a model whose template has tools, or give one with --chat-template-file in"
            " engine_args.",
            option="tool_choice",
        )


def _check_shapes(options: Mapping[str, Any]) -> None:
    given = [name for name in _SHAPES if options.get(name) is not None]
    if len(given) > 1 and options.get("response_format") != {"type": "text"}:
        raise InvalidRequest(
            f"{' and '.join(given)} are both given, and each says what shape the answer has.",
            hint="Give one of them.",
            option=given[0],
        )


def _check_extra(options: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    reserved = sorted(_RESERVED & extra.keys())
    if reserved:
        raise InvalidRequest(
            f"extra holds {', '.join(map(str, reserved))}, which keepwarm sets itself.",
            option="extra",
        )
    if isinstance(grammar := extra.get("grammar"), str):
        check_grammar(grammar)
    for shape in ("json_schema", "response_format"):
        if isinstance(given := extra.get(shape), Mapping):
            response_format(shape, given)
    for name in extra:
        option = _SAME.get(name, name)
        rivals = _SHAPES if option in _SHAPES else (option,)
        twice = next((rival for rival in rivals if options.get(rival) is not None), None)
        if twice is not None:
            raise InvalidRequest(
                f"extra holds {name}, and {twice} is given, too.",
                hint=f"Give {option} once, best as the option {option}."
                if option in OPTIONS
                else "",
                option=twice,
            )


def _check(endpoint: Endpoint, name: str, value: Any) -> None:
    known = OPTIONS.get(name)
    if known is None:
        raise unknown_option(name)
    check, allowed = known
    if not check(value):
        raise InvalidRequest(
            f"option {name} is {shown(value)}; it takes {allowed}.", option=name, allowed=allowed
        )
    needs = _NEEDS.get(name)
    if name == "response_format" and value["type"] != "text":
        needs = "json_schema"
    lacks = needs is not None and not getattr(endpoint.capabilities, needs)
    if lacks or (name in _ONLY_LLAMA_CPP and endpoint.backend != _LLAMA_CPP):
        raise InvalidRequest(
            f"{endpoint.name} ({endpoint.backend}) cannot honour the option {name}.",
            hint="Leave it out, or send the request to a model that can.",
            option=name,
            backend=endpoint.backend,
        )


def _check_slot(endpoint: Endpoint, slot: Any) -> None:
    """llama-server serves a request for a slot that it does not have in any other one."""
    if endpoint.is_known and endpoint.backend == _LLAMA_CPP and _integer(endpoint.slots)(slot):
        last = endpoint.slots - 1
        raise InvalidRequest(
            f"{endpoint.name} has no slot {slot}: "
            + (f"it has 0 to {last}." if last else "its one slot is 0."),
            hint="Leave it out, and the engine chooses; or give the model more slots in the configuration.",
            option="slot",
            allowed=f"a whole number from 0 to {last}",
        )


def _field(name: str, value: Any) -> Mapping[str, Any]:
    if name in {"json_schema", "response_format"}:
        return {"response_format": response_format(name, value)}
    if name == "slot":
        return {"id_slot": value}
    return {"stop": [value] if isinstance(value, str) else list(value)}
