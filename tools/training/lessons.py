"""What the demo's models learn from: drafts with mistakes, revisions that mend them, and judgements.

Everything is made here from a seed; the truth of a judgement is counted, never guessed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from harness.demo.reports import RUBRIC, FactSheet, Statement, sheets, statements, true_scores
from harness.demo.reports.facts import VALUES
from harness.demo.reports.report_prompts import judge_prompt, revise

Kind = Literal["draft", "revise", "judge"]


@dataclass(frozen=True, slots=True)
class Noise:
    """How likely a fact is left out, gets another value, or is told twice."""

    omitted: float
    wrong: float
    twice: float


DRAFT: Final = Noise(0.20, 0.15, 0.10)
REVISION: Final = Noise(0.03, 0.03, 0.02)
JUDGED: Final = (DRAFT, Noise(0.2, 0.4, 0.1), REVISION, Noise(0.4, 0.35, 0.2))
EXAMINED: Final = Noise(0.1, 0.5, 0.1)
"""Half of the values are wrong: the last lessons of the judge are about telling them from right ones."""
MENDED: Final = 0.85
"""How likely a revision mends a mistake that it was shown."""
FLOORS: Final = (7.0, 8.0, 9.0, 9.5)
KINDS: Final[tuple[Kind, ...]] = ("draft", "revise", "judge", "judge")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation and the answer that is learned."""

    kind: Kind
    messages: Sequence[Any]
    answer: str


def lessons(seed: int, count: int) -> Iterator[Lesson]:
    """So many lessons; the same ones for the same seed."""
    draw = random.Random(seed)
    for sheet in islice(sheets(seed), count):
        yield _lesson(draw, sheet, draw.choice(KINDS))


def examinations(seed: int, count: int) -> Iterator[Lesson]:
    """So many lessons in judging reports of which half the values are wrong."""
    draw = random.Random(seed)
    for sheet in islice(sheets(seed), count):
        yield _judged(sheet, noisy(draw, sheet, EXAMINED))


def noisy(draw: random.Random, sheet: FactSheet, noise: Noise) -> list[Statement]:
    """What a report with mistakes says; one statement at least."""
    said: list[Statement] = []
    for fact in sheet.facts:
        if draw.random() < noise.omitted:
            continue
        said.append(_wrong(draw, fact) if draw.random() < noise.wrong else fact)
        if draw.random() < noise.twice:
            said.append(draw.choice(said))
    return said or [draw.choice(sheet.facts)]


def judgement(sheet: FactSheet, report: str) -> str:
    """The answer of a judge that makes no mistake, in the shape of the rubric's schema."""
    said, scores = statements(report, sheet.name), true_scores(sheet, report)
    # In one order of keys, whatever that of the facts and the report: so what comes next is easy to know.
    order = {key: number for number, key in enumerate(VALUES)}
    distinct = sorted(dict.fromkeys(said), key=lambda one: order.get(one.key, -1))
    facts = sorted(sheet.facts, key=lambda one: order[one.key])
    keys = {one.key for one in said}
    true = {fact.key: fact.value for fact in sheet.facts}
    twice = [one.key for one in distinct if said.count(one) > 1]
    reasons = {
        "complete": [f"{f.key} {'yes' if f.key in keys else 'no'}" for f in facts],
        "correct": [_compared(one, true.get(one.key, "nothing")) for one in distinct],
        "concise": [f"{key} twice" for key in twice] or ["nothing twice"],
    }
    found = {
        name: {"reasons": ", ".join(reasons[name]), "score": _short(scores[name])}
        for name in RUBRIC.names
    }
    return json.dumps(found, separators=(",", ":"))


def weak(judged: str, floor: float) -> str:
    """What `harness.refine.prompts.weaknesses` says of this judgement."""
    parsed: dict[str, dict[str, Any]] = json.loads(judged)
    ranked = sorted(parsed.items(), key=lambda item: float(item[1]["score"]))
    chosen = [item for item in ranked if item[1]["score"] < floor] or ranked[:1]
    return "\n".join(f"- {n} ({one['score']:g} of 10): {one['reasons']}" for n, one in chosen)


def _lesson(draw: random.Random, sheet: FactSheet, kind: Kind) -> Lesson:
    if kind == "judge":
        return _judged(sheet, noisy(draw, sheet, draw.choice(JUDGED)))
    said = noisy(draw, sheet, DRAFT)
    asked = {"role": "user", "content": sheet.task}
    if kind == "draft":
        return Lesson(kind, [asked], sheet.report(said))
    report = sheet.report(said)
    found = weak(judgement(sheet, report), draw.choice(FLOORS))
    messages = [asked, {"role": "assistant", "content": report}, revise(found)]
    return Lesson(kind, messages, sheet.report(mended(draw, sheet, said)))


def _judged(sheet: FactSheet, said: Sequence[Statement]) -> Lesson:
    report = sheet.report(said)
    return Lesson("judge", judge_prompt(RUBRIC, sheet.task, report), judgement(sheet, report))


def mended(draw: random.Random, sheet: FactSheet, said: Sequence[Statement]) -> list[Statement]:
    """A revision: most mistakes are mended, and few new ones are made."""
    by_key = {one.key: one for one in said}
    better: list[Statement] = []
    for fact in sheet.facts:
        old = by_key.get(fact.key)
        mends = draw.random() < MENDED
        new = fact if mends or old == fact else old
        if new is not None and not (old == fact and draw.random() < REVISION.omitted):
            better.append(_wrong(draw, fact) if draw.random() < REVISION.wrong else new)
        if old is not None and said.count(old) > 1 and not mends and better:
            better.append(better[-1])
    return better or [draw.choice(sheet.facts)]


def _wrong(draw: random.Random, fact: Statement) -> Statement:
    others = [value for value in VALUES[fact.key] if value != fact.value]
    return Statement(fact.key, draw.choice(others))


def _compared(said: Statement, true: str) -> str:
    # Both values side by side: a small model copies well, and sees whether two neighbours are equal.
    return f"{said.key} {said.value} for {true} {'right' if said.value == true else 'wrong'}"


def _short(score: float) -> int | float:
    return int(score) if score == int(score) else score
