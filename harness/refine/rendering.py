"""A record as people read it: a table in a terminal, and a page with a plot of the scores."""

from __future__ import annotations

import math
import re
from html import escape
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from harness.evaluation.judgement import Evaluation
from harness.evaluation.rubric import HIGHEST
from harness.refine.record import RefineRecord, Round
from traces.text import clean

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 76, 28, 30
_MANY_ROUNDS: Final = 12
"""With more rounds than this the points have no figures beside them: these would overlap."""
_UNSEEN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would steer a terminal, or turn its line round: a note may quote what a model wrote."""
_END: Final = {
    "passed": "the composite passed",
    "no_progress": "two rounds brought nothing better",
    "repeated": "the producer repeated itself",
    "max_rounds": "no further round was allowed",
    "failed": "a step could not be done",
    None: "the run has not ended",
}
_COLOURS: Final = (
    ":root{--ground:#fff;--ink:#1c2128;--quiet:#59636e;--line:#d1d9e0;--panel:#f6f8fa;"
    "--score:#0969da;--pass:#bc4c00}"
    "@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--quiet:#9198a1;"
    "--line:#3d444d;--panel:#151b23;--score:#4493f8;--pass:#f0883e}}"
)
_PAGE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:56em;margin:2em auto;padding:0 1em;"
    "background:var(--ground);color:var(--ink)}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}"
    "svg{max-width:100%;height:auto}pre{white-space:pre-wrap;overflow-wrap:anywhere;"
    "font:13px/1.5 ui-monospace,monospace;background:var(--panel);border:1px solid var(--line);"
    "border-radius:6px;padding:1em}div{overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1em 0}"
    "th,td{padding:.35em .8em;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}"
    "th{color:var(--quiet);font-weight:600}table.reasons :is(td:first-child,td:last-child){text-align:left}"
    "tr.best td,mark{font-weight:700;color:var(--score);background:none}"
)
_PLOT: Final = (
    "svg text{font:12px system-ui,sans-serif;fill:var(--quiet);"
    "paint-order:stroke;stroke:var(--ground);stroke-width:4px}svg .ground{fill:var(--ground)}"
    "svg .grid{stroke:var(--line)}svg line.pass{stroke:var(--pass);stroke-dasharray:5 4}"
    "svg text.pass{fill:var(--pass);stroke:none}svg polyline{fill:none;stroke:var(--score);"
    "stroke-width:2}svg circle{fill:var(--ground);stroke:var(--score);stroke-width:2}"
    "svg .best{fill:var(--score)}svg text.best{font-weight:700}"
)


def table(record: RefineRecord) -> Table:
    """Rounds as rows, the best one bold: scores, composite, seconds, and calls that waited for a load."""
    notes = Text(_UNSEEN.sub("\ufffd", "\n".join(remarks(record))))
    shown = Table(title=summary(record), caption=notes or None, box=box.SIMPLE_HEAD)
    shown.title_justify = shown.caption_justify = "left"
    for heading in _headings(record):
        shown.add_column(heading, justify="right")
    best = _best(record)
    for number, one in enumerate(record.rounds, 1):
        shown.add_row(*_cells(record, number, one), style="bold" if number == best else None)
    return shown


def summary(record: RefineRecord) -> str:
    """One sentence: the best composite, its round, what passes, and why the run ended."""
    end, best = _END[record.stopped], _best(record)
    if best is None:
        return f"No round was judged; {end}."
    rounds, passes = len(record.rounds), record.settings.threshold
    return f"Best: {record.composite:.2f} in round {best} of {rounds} ({passes:g} passes); {end}."


def remarks(record: RefineRecord) -> list[str]:
    """What a reader of the scores should know: judges that are not fit to judge, and the record's notes."""
    overridden = [f"{name} judged although it is not fit to." for name in record.settings.overrides]
    return [*overridden, *record.notes]


def html(record: RefineRecord) -> str:
    """A page of its own, without scripts or addresses: the plot, the table, and each round's text."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in _headings(record))
    best = _best(record)
    rows = "".join(
        f"<tr{_marked(number == best)}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(record, number, one))
        + "</tr>"
        for number, one in enumerate(record.rounds, 1)
    )
    notes = "".join(f"<p>{escape(one)}</p>" for one in remarks(record))
    texts = "".join(_text(n, one, best=n == best) for n, one in enumerate(record.rounds, 1))
    # Half of a character, as broken JSON of an endpoint has it, could not be written into a file.
    return clean(
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(summary(record))}</title><style>{_COLOURS}{_PAGE}</style>"
        f"<h1>{escape(summary(record))}</h1><pre>{escape(record.task)}</pre>{plot(record)}"
        f"<div><table><tr>{head}</tr>{rows}</table></div>{notes}{texts}</html>"
    )


def plot(record: RefineRecord) -> str:
    """The composite by round as SVG, with the threshold as a line; it shows as well without a page.

    The axis begins under the lowest of what is shown, because most scores are close to the threshold.
    """
    judged = [
        (n, one.evaluation.composite) for n, one in enumerate(record.rounds, 1) if one.evaluation
    ]
    passes, rounds, best = record.settings.threshold, len(record.rounds), _best(record)
    least = max(0, math.floor(min([passes, *(score for _, score in judged)])) - 1)
    step = 1 if HIGHEST - least <= 5 else 2

    def across(number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (number - 0.5) / max(1, rounds)

    def up(score: float) -> float:
        share = (score - least) / (HIGHEST - least)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    ticks = "".join(
        f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{up(n):.1f}' y2='{up(n):.1f}'/>"
        f"<text x='{_LEFT - 8}' y='{up(n) + 4:.1f}' text-anchor='end'>{n}</text>"
        for n in range(int(HIGHEST), least - 1, -step)
    )
    every = -(-rounds // _MANY_ROUNDS)
    names = "".join(
        f"<text x='{across(n):.1f}' y='{_HEIGHT - 8}' text-anchor='middle'>round {n}</text>"
        for n in range(1, rounds + 1, max(1, every))
    )
    line = " ".join(f"{across(n):.1f},{up(score):.1f}" for n, score in judged)
    dots = "".join(
        f"<circle{_marked(n == best)} cx='{across(n):.1f}' cy='{up(score):.1f}' r='5'>"
        f"<title>round {n}: {score:.2f}</title></circle>"
        + (
            f"<text{_marked(n == best)} x='{across(n):.1f}' y='{up(score) - 11:.1f}' "
            f"text-anchor='middle'>{score:.2f}</text>"
            if rounds <= _MANY_ROUNDS or n == best
            else ""
        )
        for n, score in judged
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' "
        f"height='{_HEIGHT}' role='img' aria-label='composite by round'>"
        f"<style>{_COLOURS}{_PLOT}</style><rect class='ground' width='100%' height='100%'/>"
        f"{ticks}{names}<line class='pass' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' "
        f"y1='{up(passes):.1f}' y2='{up(passes):.1f}'/>"
        f"<text class='pass' x='{_WIDTH - _RIGHT + 8}' y='{up(passes) + 4:.1f}'>{passes:g} passes</text>"
        f"<polyline points='{line}'/>{dots}</svg>"
    )


def _best(record: RefineRecord) -> int | None:
    """The number of the best round, from 1; None where none was judged."""
    judged = any(one.evaluation is not None for one in record.rounds)
    return record.rounds.index(record.best) + 1 if judged else None


def _marked(best: bool) -> str:  # noqa: FBT001 - a mark is there or not
    return " class='best'" if best else ""


def _headings(record: RefineRecord) -> list[str]:
    spread = ["spread"] if _has_spread(record) else []
    return ["round", *record.settings.rubric, "composite", *spread, "seconds", "loads"]


def _has_spread(record: RefineRecord) -> bool:
    """Whether several judges scored a round: one alone agrees with itself."""
    return any(one.evaluation and len(one.evaluation.judgements) > 1 for one in record.rounds)


def _cells(record: RefineRecord, number: int, one: Round) -> list[str]:
    evaluation, made = one.evaluation, one.produced
    spread = _has_spread(record)
    if evaluation is None:
        blank = ["-"] * (len(record.settings.rubric) + 1 + spread)
        return [str(number), *blank, f"{made.seconds:.2f}", str(int(made.cold))]
    scores = evaluation.scores
    cold = made.cold + sum(judgement.cold for judgement in evaluation.judgements)
    apart = f"{evaluation.spread:.2f}{' disputed' if evaluation.disputed else ''}"
    return [
        str(number),
        *(f"{scores[name]:g}" for name in record.settings.rubric),
        f"{evaluation.composite:.2f}",
        *([apart] if spread else []),
        f"{made.seconds + evaluation.seconds:.2f}",
        str(cold),
    ]


def _text(number: int, one: Round, *, best: bool) -> str:
    reasons = "" if one.evaluation is None else _reasons(one.evaluation)
    mark = " <mark>best</mark>" if best else ""
    return f"<h2>Round {number}{mark}</h2><pre>{escape(one.produced.text)}</pre>{reasons}"


def _reasons(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{score:g}</td><td>{escape(evaluation.reasons(name))}</td></tr>"
        for name, score in evaluation.scores.items()
    )
    return f"<table class='reasons'>{rows}</table>"
