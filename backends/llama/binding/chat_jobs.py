"""A chat request's body as what the model is to do; what it does not know is refused by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.llama.binding.native_model import Refused, Sampling

_SAMPLED: Final = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repeat_penalty": float,
    "seed": int,
    "grammar": str,
    "ignore_eos": bool,
}
_OTHERS: Final = frozenset(
    ["model", "messages", "stream", "stream_options", "return_progress", "max_tokens", "n_predict"]
) | {"max_completion_tokens", "stop", "response_format", "chat_template_kwargs"}
_MEANS_NOTHING: Final = frozenset(["id_slot", "cache_prompt"])
"""There is one slot, and it always keeps its prompt."""
_NO_MORE: Final = 1 << 30


@dataclass(frozen=True)
class ChatJob:
    """One chat request, read and checked."""

    messages: list[Mapping[str, Any]]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    streamed: bool
    progress: bool
    given: Mapping[str, Any]


def read_chat(body: Any) -> ChatJob:
    """The request of a body.

    Raises:
        Refused: it is not one, or asks for what there is not here.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise Refused("the body has no messages")
    unknown = sorted(body.keys() - _SAMPLED.keys() - _OTHERS - _MEANS_NOTHING)
    if unknown:
        raise Refused(f"llama-cpp-python's worker cannot honour {', '.join(unknown)}")
    most = next(
        (body[n] for n in ("max_tokens", "max_completion_tokens", "n_predict") if body.get(n)), -1
    )
    stop = body.get("stop") or []
    try:
        fields = {n: kind(body[n]) for n, kind in _SAMPLED.items() if body.get(n) is not None}
        fields["grammar"] = fields.get("grammar") or _shape(body.get("response_format"))
        if "seed" in fields:
            fields["seed"] &= 0xFFFFFFFF
        return ChatJob(
            messages=body["messages"],
            sampling=Sampling(**fields),
            max_tokens=int(most) if int(most) > 0 else _NO_MORE,
            stop=tuple(map(str, [stop] if isinstance(stop, str) else stop)),
            streamed=bool(body.get("stream")),
            progress=bool(body.get("return_progress")),
            given=dict(body.get("chat_template_kwargs") or {}),
        )
    except (TypeError, ValueError) as error:
        raise Refused(f"a field has a value that is not allowed: {error}") from None


def _shape(asked: Any) -> str:
    """The grammar of a `response_format`; empty for text.

    Raises:
        Refused: the schema cannot be expressed.
    """
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("json_object", "json_schema"):
        return ""
    inner = asked.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else asked.get("schema")
    converter = importlib.import_module("llama_cpp.llama_grammar")
    try:
        return str(converter.json_schema_to_gbnf(json.dumps(schema or {})))
    except Exception as error:  # it asserts, and indexes without looking
        why = f"{type(error).__name__}: {error}"
        raise Refused(f"the JSON schema cannot be expressed as a grammar: {why}"[:2000]) from None
