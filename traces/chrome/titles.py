"""What the slices of a request are called: with the figures that a reader looks for first."""

from __future__ import annotations

from collections.abc import Mapping

from traces import names
from traces.text import Value


def title_of(name: str, attributes: Mapping[str, Value], ns: int) -> tuple[str, float]:
    """The name of a slice of that length, and its tokens a second (0 where there are none)."""
    if name == names.PROMPT_EVALUATION:
        prompt = _count(attributes, names.INPUT_TOKENS)
        cached = _count(attributes, names.CACHED_TOKENS)
        rate = _rate(prompt - cached, attributes.get(names.PROMPT_MS), ns)
        found = f", {cached} cached" if cached else ""
        return _told(name, prompt, found, rate), rate
    if name == names.GENERATE:
        tokens = _count(attributes, names.OUTPUT_TOKENS)
        rate = _rate(tokens, attributes.get(names.PREDICTED_MS), ns) if tokens > 1 else 0.0
        return _told(name, tokens, "", rate), rate
    return name, 0.0


def _told(name: str, tokens: int, more: str, rate: float) -> str:
    if not tokens:
        return name
    speed = f", {rate:.{0 if rate >= 100 else 1}f}/s" if rate else ""
    return f"{name} {tokens} token{'' if tokens == 1 else 's'}{more}{speed}"


def _count(attributes: Mapping[str, Value], name: str) -> int:
    value = attributes.get(name)
    return value if isinstance(value, int) else 0


def _rate(tokens: int, ms: Value | None, ns: int) -> float:
    """By the engine's own figure, else by the length of the slice."""
    seconds = ms / 1e3 if isinstance(ms, int | float) and ms else ns / 1e9
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
