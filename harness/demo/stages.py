"""The demo's pipeline: classify -> retrieve -> produce -> evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.demo.texts import CLASSIFY, LABELS, PASSAGES, RUBRIC, WRITE
from harness.pipeline import Pipeline, Stage, StageContext
from shim import Shim

UNSORTED = "unsorted"
_LABEL_TOKENS = 4
_ANSWER_TOKENS = 16
_GRADE_TOKENS = 4
_SEED = 7


def demo_pipeline(shim: Shim) -> Pipeline:
    """The four stages. The requests are real ones; the text of the models is noise."""

    def classify_one(context: StageContext) -> str:
        messages = _messages(CLASSIFY, context.input)
        answer = context.chat(messages, max_tokens=_LABEL_TOKENS, seed=_SEED).content
        return next((label for label in LABELS if label in answer), UNSORTED)

    def retrieve_one(context: StageContext) -> str:
        vectors = context.embed([context.input, *PASSAGES]).vectors
        scores = [cosine(vectors[0], vector) for vector in vectors[1:]]
        return PASSAGES[scores.index(max(scores))]

    def produce_one(context: StageContext) -> str:
        asked = f"Group: {context.result(classify)}\n\nPassage: {context.result(retrieve)}\n\n"
        messages = _messages(WRITE, f"{asked}Request: {context.input}")
        return context.chat(messages, max_tokens=_ANSWER_TOKENS, seed=_SEED).content

    def evaluate_one(context: StageContext) -> int | None:
        work = f"Passage: {context.result(retrieve)}\n\nAnswer: {context.result(produce)}"
        messages = _messages(RUBRIC, f"Request: {context.input}\n\n{work}")
        answer = context.chat(messages, max_tokens=_GRADE_TOKENS, seed=_SEED).content
        return next((int(sign) for sign in answer if sign in "12345"), None)

    classify = Stage("classify", "classifier", classify_one)
    retrieve = Stage("retrieve", "embedder", retrieve_one)
    produce = Stage("produce", "producer", produce_one)
    evaluate = Stage("evaluate", "evaluator", evaluate_one)
    return Pipeline([classify, retrieve, produce, evaluate], shim)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0.0 when one of them is zero."""
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def _messages(told: str, asked: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": told}, {"role": "user", "content": asked}]
