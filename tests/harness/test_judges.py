"""Judges: judgements, panels, pools, and the checks of a judge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness import Compressor, Dimension, EvaluatorPool, Judge, Rubric
from harness.evaluation.rubric import REASONS_LENGTH
from shim import EndpointError, InvalidRequest, RoleViolation, Shim, UnknownModel
from tests.harness.told import ToldShim, in_turn, scores

RUBRIC = Rubric([Dimension("facts", "Right."), Dimension("style", "Reads well.")])


def judge(shim: ToldShim, *models: str, mode: Any = "panel", **options: Any) -> Judge:
    """A judge of these models."""
    return Judge(shim, RUBRIC, EvaluatorPool(models, mode), **options)


def test_one_judge_scores_at_temperature_0_in_the_rubrics_shape() -> None:
    """The options that make scores repeatable cannot be forgotten or overridden."""
    seen: list[Mapping[str, Any]] = []

    def answer(_messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        seen.append(options)
        return scores(facts=8, style=6)

    found = judge(ToldShim({"j": answer}), "j", options={"temperature": 1.0, "priority": 3})
    evaluation = found.evaluate("Write.", "Text.")
    assert evaluation.composite == 7.0
    assert evaluation.scores == {"facts": 8.0, "style": 6.0}
    assert evaluation.reasons("facts") == "facts is so"
    assert (evaluation.spread, evaluation.disputed) == (0.0, False)
    assert seen[0]["temperature"] == 0.0
    assert seen[0]["json_schema"] == RUBRIC.schema()
    assert seen[0]["priority"] == 3


def test_a_judge_has_room_for_the_longest_answer_of_its_schema() -> None:
    """A rubric of many dimensions would be cut at a fixed number of tokens, and a cut answer is no JSON."""
    seen: list[Mapping[str, Any]] = []
    names = [f"d{number}" for number in range(9)]

    def answer(_messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        seen.append(options)
        return scores(**dict.fromkeys(names, 8))

    rubric = Rubric([Dimension(name, "Good.") for name in names])
    shim = ToldShim({"j": answer})
    Judge(shim, rubric, "j").evaluate("Write.", "Text.")
    longest = json.dumps({n: {"reasons": "x" * REASONS_LENGTH, "score": 9.5} for n in names})
    assert seen[0]["max_tokens"] >= len(longest)
    Judge(shim, rubric, EvaluatorPool(["j"]), options={"max_tokens": 50}).evaluate("Write.", "T.")
    assert seen[1]["max_tokens"] == 50


def test_a_panel_gives_medians_and_flags_disagreement() -> None:
    """One judge that is far off changes neither score nor composite, and is seen."""
    told = {
        "a": scores(facts=8, style=8),
        "b": scores(facts=7, style=9),
        "c": scores(facts=1, style=1),
    }
    shim = ToldShim({name: in_turn(text) for name, text in told.items()})
    evaluation = judge(shim, "a", "b", "c").evaluate("Write.", "Text.")
    assert sorted(shim.asked) == ["a", "b", "c"]
    assert evaluation.composite == 8.0
    assert evaluation.scores == {"facts": 7.0, "style": 8.0}
    assert evaluation.spread == 7.0
    assert evaluation.disputed


def test_a_pool_chooses_by_the_run_and_always_the_same() -> None:
    """Runs share the judges; one run keeps its judge."""
    pool = EvaluatorPool(["a", "b", "c"])
    chosen = Counter(pool.chosen(f"run {number}") for number in range(300))
    assert set(chosen) == {("a",), ("b",), ("c",)}
    assert min(chosen.values()) > 60
    assert pool.chosen("run 7") == EvaluatorPool(["a", "b", "c"]).chosen("run 7")


@pytest.mark.parametrize(("models", "mode"), [((), "hash"), (("a", "a"), "hash"), (("a",), "all")])
def test_a_pool_that_cannot_be_is_refused(models: tuple[str, ...], mode: Any) -> None:
    """No model, one that votes twice, an unknown mode."""
    with pytest.raises(InvalidRequest):
        EvaluatorPool(models, mode)


def test_a_judge_that_pays_for_length_is_found() -> None:
    """A longer answer with nothing new must not gain; the same answer must score the same."""

    def by_length(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        return scores(facts=min(10, len(messages[-1]["content"]) // 50), style=5)

    vain = judge(ToldShim({"j": by_length}), "j")
    assert not vain.check_length("Write.", "Text. " * 20).holds
    assert vain.check_repeat("Write.", "Text. " * 20).holds
    moody = judge(ToldShim({"j": in_turn(scores(facts=8, style=5), scores(facts=7, style=5))}), "j")
    assert not moody.check_repeat("Write.", "Text.").holds


def test_a_judge_that_wavers_with_what_was_asked_before_is_found() -> None:
    """An engine that has a prompt already may round otherwise: the check asks of another answer, too."""
    asked: list[str] = []

    def by_what_was_asked(messages: Sequence[Mapping[str, Any]], _options: Any) -> str:
        asked.append(messages[-1]["content"])
        return scores(facts=8 if asked[-2:-1] in ([], asked[-1:]) else 7.5, style=5)

    found = judge(ToldShim({"j": by_what_was_asked}), "j").check_repeat("Write.", "Text.")
    assert (found.first, found.second, found.holds) == (6.5, 6.25, False)


def test_long_answers_are_cut_for_the_judge_and_counted() -> None:
    """The judgement says how many characters it did not see."""
    sent: list[str] = []

    def answer(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        sent.append(messages[-1]["content"])
        return scores(facts=8, style=8)

    text = "Facts are here. " * 100
    found = judge(ToldShim({"j": answer}), "j", compressor=Compressor(400)).evaluate("Write.", text)
    assert len(sent[0]) < 450
    assert found.judgements[0].cut >= len(text) - 400


def test_an_empty_answer_and_one_that_is_no_json_are_typed() -> None:
    """The first is the caller's, the second the endpoint's; a cut answer is named as that."""
    with pytest.raises(InvalidRequest, match="empty"):
        judge(ToldShim({"j": in_turn("")}), "j").evaluate("Write.", "  \n")
    for odd in ("Nice!", "[" * 5000):
        with pytest.raises(EndpointError, match="no JSON object"):
            judge(ToldShim({"j": in_turn(odd)}), "j").evaluate("Write.", "Text.")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("I give it a 7.", "The judge j answered no JSON object: 'I give it a 7.'. Its endpoint"),
        (" ", "The judge j answered nothing: ' '. Its endpoint"),
        (scores(facts=11, style=6), 'The judge j gave the score 11 for facts: \'{"facts"'),
        (
            '{"facts": {"score": 1, "score": 9}, "style": {"score": 6}}',
            "The judge j gave score twice: '{",
        ),
        (scores(facts=8), 'The judge j gave no score for style: \'{"facts"'),
        ("7" * 500, f"gave no score for facts: {'7' * 120!r}.... Its endpoint"),
    ],
)
def test_a_malformed_answer_is_quoted_and_what_to_do_fits_its_cause(said: str, words: str) -> None:
    """Only an answer that was cut is helped by more tokens."""
    with pytest.raises(EndpointError) as caught:
        judge(ToldShim({"j": in_turn(said)}), "j").evaluate("Write.", "Text.")
    assert words in str(caught.value)
    assert "max_tokens" not in str(caught.value)


def test_a_judge_under_the_floor_needs_its_name_whatever_calls_it() -> None:
    """As in `Refine`; an evaluator that is not configured is named at once."""
    shim = ToldShim({"j": lambda *_: scores(facts=8, style=6)}, bits={"j": 4.5})
    with pytest.raises(RoleViolation, match=r"4\.5 bits per weight"):
        Judge(shim, RUBRIC, "j")
    assert Judge(shim, RUBRIC, "j", overridden=["j"]).evaluate("Write.", "Text.").composite == 7
    with pytest.raises(UnknownModel):
        Judge(Shim({"models": {"j": {"url": "http://127.0.0.1:9/v1"}}}), RUBRIC, "k")


def test_a_batch_is_read_judge_by_judge() -> None:
    """Three judges of which one fits are loaded three times, not once for each answer."""
    shim = ToldShim({name: lambda *_: scores(facts=8, style=6) for name in "abc"})
    work = [(f"Task {n}.", f"Text {n}.") for n in range(5)]
    found = judge(shim, "a", "b", "c").evaluate_many(work, at_once=2)
    assert shim.asked == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert [[one.judge for one in evaluation.judgements] for evaluation in found] == [
        ["a", "b", "c"]
    ] * 5


def test_a_batch_of_a_pool_has_one_judge_for_each_task() -> None:
    """The judge of a task is the one that `evaluate` would choose for it."""
    shim = ToldShim({name: lambda *_: scores(facts=8, style=6) for name in "ab"})
    one = judge(shim, "a", "b", mode="hash")
    work = [(f"Task {n}.", "Text.") for n in range(12)]
    found = [evaluation.judgements[0].judge for evaluation in one.evaluate_many(work)]
    assert found == [one.pool.chosen(task)[0] for task, _ in work]
    assert set(found) == {"a", "b"}


def test_a_batch_with_a_judge_that_fails_asks_no_more_than_what_is_under_way() -> None:
    """The error is the judge's, and the calls that had not begun are not made."""
    shim = ToldShim({"a": lambda *_: "no JSON", "b": lambda *_: scores(facts=8, style=6)})
    with pytest.raises(EndpointError, match="a answered no JSON object"):
        judge(shim, "a", "b").evaluate_many([("Task.", "Text.")] * 2000, at_once=1)
    assert len(shim.asked) < 2000
    assert "b" not in shim.asked


@pytest.mark.parametrize("answer", ["```\n" + "x = 1\n" * 2000 + "```\n", "x" * 7000])
def test_an_answer_of_which_nothing_would_be_read_is_not_scored(answer: str) -> None:
    """A judge that saw the mark of the cut alone would score that."""
    shim = ToldShim({"judge": in_turn(scores(facts=9))})
    judge = Judge(shim, Rubric([Dimension("facts", "Right.")]), EvaluatorPool(["judge"]))
    with pytest.raises(InvalidRequest, match=r"Nothing of an answer of .* fits the limit of 6,000"):
        judge.evaluate("Write.", answer)
    assert shim.asked == []
