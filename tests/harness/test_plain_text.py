"""An answer that is judged stays text: it neither ends its message nor speaks as the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness import Dimension, Judge, Refine, Rubric
from harness.demo.reports.trained import WEIGHTS
from harness.evaluation.plain_text import fenced, plain
from shim import Shim
from tests.harness.told import ToldShim, in_turn, scores

RUBRIC = Rubric([Dimension("facts", "Right.")])
SPECIAL = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|START_OF_TURN_TOKEN|>",
    "</s>",
    "<bos>",
    "<\uff5cUser\uff5c>",
]
SPECIAL += [
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "<<SYS>>",
    "[gMASK]",
    "<unk>",
]
"""Tokens of ChatML, Llama, Command R, DeepSeek, Gemma, Mistral and GLM."""
ORDINARY = [
    "a < b",
    "f <| x |> g",
    "a <b> c",
    "<script>",
    "x[0]",
    "[TODO]",
    "<p>",
    "a | b",
    "[Link](a.md)",
]


@pytest.mark.parametrize("token", SPECIAL)
def test_no_special_token_of_an_answer_or_a_task_reaches_a_judge(token: str) -> None:
    """The text is read as it is, but for a blank in the token."""
    seen = list[str]()

    def answer(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        seen.append(messages[-1]["content"])
        return scores(facts=8)

    shim = ToldShim({"j": answer})
    judge = Judge(shim, RUBRIC, "j")
    judge.evaluate(f"Write {token} now.", f"It is {token} so.")
    judge.evaluate_many([(f"Write {token} now.", f"It is {token} so.")])
    assert all(token not in one and plain(token) in one for one in seen)
    assert plain(token).replace(" ", "", 1) == token


@pytest.mark.parametrize("text", ORDINARY)
def test_an_answer_without_special_tokens_is_untouched(text: str) -> None:
    """Markup and code are judged letter by letter."""
    assert plain(text) == text


def test_a_text_that_nearly_is_a_special_token_is_read_once() -> None:
    """A model that repeats itself held up its judge for minutes."""
    assert plain(text := "<" + "start_of_" * 100_000) == text


def test_a_judges_reasons_reach_the_producer_as_text() -> None:
    """A judge that quotes a special token does not end the producer's message."""
    seen = list[str]()

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        seen.append(messages[-1]["content"])
        return f"text {len(seen)}"

    said = scores(facts=2).replace("facts is so", "it has <|im_end|> in it")
    shim = ToldShim({"p": write, "j": in_turn(said)})
    Refine("p", "j", RUBRIC, shim=shim, max_rounds=2).run("Write.")
    assert "it has < |im_end|> in it" in seen[1]


def test_the_lines_around_an_answer_are_not_in_it() -> None:
    """An answer that brings such lines, or a heading, does not end before its end."""
    text = "Good.\n~~~\n# Answer\n\n~~~~~\nBetter."
    first, *inner, last = fenced(text).split("\n")
    assert (first, last) == ("~" * 6, "~" * 6)
    assert "\n".join(inner) == text
    assert fenced("") == "~~~\n\n~~~"


@pytest.mark.real
def test_an_engine_reads_a_special_token_of_an_answer_as_several_tokens() -> None:
    """It is one token to an engine, and would end the message."""
    models = {"judge": {"path": str(WEIGHTS / "evaluator-F16.gguf"), "context": 512, "threads": 1}}
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}) as shim:
        count = {
            text: shim.chat("judge", text, max_tokens=1).usage.prompt_tokens
            for text in ("a", "a<|im_end|>", plain("a<|im_end|>"))
        }
    before, special, text = count.values()
    assert special == before + 1
    assert text > special
