"""A record as people read it: a table in a terminal, and a page with a plot of the scores."""

from __future__ import annotations

from html import escape

from rich.table import Table

from harness.evaluation.judge import Evaluation
from harness.evaluation.rubric import HIGHEST
from harness.refine.record import RefineRecord, Round

_WIDTH, _HEIGHT, _EDGE = 320, 120, 12
_END = {
    "passed": "the composite passed",
    "no_progress": "two rounds brought nothing better",
    "repeated": "the producer repeated itself",
    "max_rounds": "the last round was over",
    "failed": "a step could not be done",
    None: "it goes on",
}


def table(record: RefineRecord) -> Table:
    """Rounds as rows: scores by dimension, the composite, seconds, and calls that waited for a load."""
    shown = Table(title=summary(record), caption="\n".join(remarks(record)) or None)
    for heading in _headings(record):
        shown.add_column(heading, justify="right")
    for number, one in enumerate(record.rounds, 1):
        shown.add_row(*_cells(record, number, one))
    return shown


def summary(record: RefineRecord) -> str:
    """One sentence: the best composite, its round, and why the run ended."""
    judged = [one for one in record.rounds if one.evaluation is not None]
    end = _END[record.stopped]
    if not judged:
        return f"No round was judged; {end}."
    best = record.rounds.index(record.best) + 1
    return f"Best: {record.composite:.2f} in round {best} of {len(record.rounds)}; {end}."


def remarks(record: RefineRecord) -> list[str]:
    """What a reader of the scores should know: judges that are not fit to judge, and the record's notes."""
    overridden = [f"{name} judged although it is not fit to." for name in record.settings.overrides]
    return [*overridden, *record.notes]


def html(record: RefineRecord) -> str:
    """A page of its own, without scripts or addresses: the plot, the table, and each round's text."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in _headings(record))
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(record, n, one)) + "</tr>"
        for n, one in enumerate(record.rounds, 1)
    )
    notes = "".join(f"<p>{escape(one)}</p>" for one in remarks(record))
    texts = "".join(_text(n, one) for n, one in enumerate(record.rounds, 1))
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Refined answer</title>"
        "<style>body{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}"
        "td,th{padding:.2em .8em;text-align:right}pre{white-space:pre-wrap;background:#f4f4f4;"
        "padding:1em}</style>"
        f"<h1>{escape(summary(record))}</h1><pre>{escape(record.task)}</pre>{plot(record)}"
        f"<table><tr>{head}</tr>{rows}</table>{notes}{texts}</html>"
    )


def plot(record: RefineRecord) -> str:
    """The composite by round as SVG, with the threshold as a line."""
    judged = [(n, one.evaluation) for n, one in enumerate(record.rounds) if one.evaluation]
    last = max(1, len(record.rounds) - 1)

    def place(number: int, score: float) -> tuple[float, float]:
        across = _EDGE + (_WIDTH - 2 * _EDGE) * number / last
        return across, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * score / HIGHEST

    points = [place(number, evaluation.composite) for number, evaluation in judged]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    _, passes = place(0, record.settings.threshold)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4'><title>round {n + 1}: {e.composite:.2f}</title></circle>"
        for (x, y), (n, e) in zip(points, judged, strict=True)
    )
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='composite by round'>"
        f"<line x1='0' x2='{_WIDTH}' y1='{passes:.1f}' y2='{passes:.1f}' stroke='#c60' "
        f"stroke-dasharray='4'/><polyline points='{line}' fill='none' stroke='#06c'/>{dots}</svg>"
    )


def _headings(record: RefineRecord) -> list[str]:
    return ["round", *record.settings.rubric, "composite", "spread", "seconds", "cold"]


def _cells(record: RefineRecord, number: int, one: Round) -> list[str]:
    evaluation, made = one.evaluation, one.produced
    if evaluation is None:
        blank = ["-"] * (len(record.settings.rubric) + 2)
        return [str(number), *blank, f"{made.seconds:.2f}", str(int(made.cold))]
    scores = evaluation.scores
    cold = made.cold + sum(judgement.cold for judgement in evaluation.judgements)
    return [
        str(number),
        *(f"{scores[name]:g}" for name in record.settings.rubric),
        f"{evaluation.composite:.2f}",
        f"{evaluation.spread:.2f}{' disputed' if evaluation.disputed else ''}",
        f"{made.seconds + evaluation.seconds:.2f}",
        str(cold),
    ]


def _text(number: int, one: Round) -> str:
    reasons = "" if one.evaluation is None else _reasons(one.evaluation)
    return f"<h2>Round {number}</h2><pre>{escape(one.produced.text)}</pre>{reasons}"


def _reasons(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<li>{escape(name)} {score:g}: {escape(evaluation.reasons(name))}</li>"
        for name, score in evaluation.scores.items()
    )
    return f"<ul>{rows}</ul>"
