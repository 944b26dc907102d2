"""The options of a call, as an editor shows them; `docs/options.md` says more of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class CallOptions(TypedDict, total=False):
    """What every call takes.

    `priority` orders waiting calls (0 is usual; below 0 is work in the background). `deadline_s` are the
    seconds in which the whole call has to end, waiting included. The time-outs are seconds, too: for
    connecting; and from the request on until the first token, between two tokens, and in all.
    """

    priority: int | None
    deadline_s: float | None
    connect_timeout: float | None
    first_token_timeout: float | None
    token_timeout: float | None
    answer_timeout: float | None


class ChatOptions(CallOptions, total=False):
    """What `chat` and `stream` take; None is as if it were not given."""

    max_tokens: int | None
    max_completion_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    response_format: Mapping[str, Any] | None
    json_schema: Mapping[str, Any] | None
    grammar: str | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: Literal["auto", "none", "required"] | Mapping[str, Any] | None
    logprobs: bool | None
    top_logprobs: int | None
    slot: int | None
    cache_prompt: bool | None
    extra: Mapping[str, Any] | None
