"""Evaluating a model's `warm_prompt` right after a load, so that its first request finds it done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.base import Endpoint
from backends.machine.unix_http import control_request
from budget.errors import LoadFailed

EVALUATION_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Warmed:
    """The cost of evaluating a warm prompt."""

    tokens: int = 0
    seconds: float = 0.0


async def warm_up(endpoint: Endpoint, prompt: str) -> Warmed:
    """Evaluate a system prompt on slot 0 of an engine; its KV state stays in the slot.

    Raises:
        LoadFailed: the engine refused the prompt.
    """
    if endpoint.socket_path is None:
        return Warmed()
    body = {
        "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": ""}],
        "max_tokens": 1,
        "id_slot": 0,
        "cache_prompt": True,
    }
    status, answer = await control_request(
        Path(endpoint.socket_path),
        "POST",
        "/v1/chat/completions",
        body,
        timeout_s=EVALUATION_LIMIT_S,
    )
    if status != 200:
        raise LoadFailed(
            f"The warm_prompt of {endpoint.model_id} was refused: {answer}.",
            hint="Shorten it, or give the model a larger context.",
        )
    timings = answer.get("timings") or {}
    tokens = int(timings.get("prompt_n", 0))
    return Warmed(tokens, float(timings.get("prompt_ms", 0.0)) / 1e3)
