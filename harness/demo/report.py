"""The outcome of the demo as tables and as JSON."""

from __future__ import annotations

from typing import Any

import click

from harness.demo.demo_run import DemoReport
from harness.demo.reports import true_composite
from harness.demo.spoken_requests import Request
from harness.pipeline import StageReply
from shim import Reply, Residency
from shim.cli.console.output import print_table

_MB = 1e6


def to_json(report: DemoReport) -> dict[str, Any]:
    """The stable JSON of `keepwarm demo --json`, in seconds and bytes; null where there is no figure.

    Vectors and transcriptions have no first token and no tokens per second.
    """
    return {
        "requests": [_request(reply) for item in report.items for reply in item.replies],
        "loads": report.loads,
        "evictions": report.evictions,
        "limit_bytes": report.limit_bytes,
        "peak_measured_bytes": report.measured.peak_bytes,
        "trace": report.trace,
        "runs": report.runs,
    }


def _request(staged: StageReply) -> dict[str, Any]:
    reply, ttft_s, tokens_per_s = staged.reply, None, None
    if isinstance(reply, Reply):
        ttft_s, tokens_per_s = reply.ttft_s, reply.tokens_per_s
    return {
        "model": reply.model,
        "cold": reply.residency.cold,
        "waited_s": round(reply.residency.waited_s, 6),
        "load_s": round(reply.residency.load_s, 6),
        "ttft_s": None if ttft_s is None else round(ttft_s, 6),
        "tokens_per_s": None if tokens_per_s is None else round(tokens_per_s, 3),
    }


def show(report: DemoReport) -> None:
    """Print the tables."""
    _print_requests(report)
    _print_answers(report)
    _print_books(report)
    _print_memory(report)
    peak, limit = report.measured.peak_bytes, report.limit_bytes
    click.echo(
        f"{report.loads} loads, {report.evictions} evictions. Measured from outside every 50 ms "
        f"({report.measured.samples} samples): peak {peak / _MB:.1f} MB of a limit of "
        f"{limit / _MB:.1f} MB ({peak / limit:.1%}).\n"
    )
    click.echo(f"trace: {report.trace}")
    click.echo(f"  open it: keepwarm trace open {report.trace}")
    click.echo("  or drop the file on https://ui.perfetto.dev")
    click.echo(f"runs:  {report.runs}")


def _print_answers(report: DemoReport) -> None:
    for item in report.items:
        request: Request = item.input
        found, text = item.results, item.results["produce"]
        sheet = found.get("retrieve", request.sheet)
        true = true_composite(sheet, text)
        click.echo(f"{item.index + 1}. {found.get('hear', request.question)}")
        click.echo(f"   report: {text}")
        click.echo(f"   judged {found['evaluate']:.1f} of 10; counted from the facts {true:.1f}")
        if said := found.get("answer"):
            click.echo(f"   answer: {said} ({request.kind}: {request.fact})")
    click.echo()


def _print_requests(report: DemoReport) -> None:
    figures = ("waited", "loaded", "first token", "tokens/s")
    rows = [
        (item.index + 1 if number == 0 else "", *_cells(staged))
        for item in report.items
        for number, staged in enumerate(item.replies)
    ]
    columns = ("#", "stage", "model", *figures, "evicted")
    print_table(columns, rows, right=("#", *figures), title="requests")


def _cells(staged: StageReply) -> tuple[str, ...]:
    row, residency = _request(staged), staged.reply.residency
    return (
        staged.stage,
        row["model"],
        _ms(row["waited_s"]),
        _loaded(row["load_s"], residency) if row["cold"] else "warm",
        _ms(row["ttft_s"]),
        "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.1f}",
        ", ".join(residency.evicted),
    )


def _loaded(seconds: float, residency: Residency) -> str:
    return f"{_ms(seconds)}{' from disk' if residency.storage == 'cold' else ''}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _print_books(report: DemoReport) -> None:
    amounts = ("limit", "protected", "evictable", "free")
    rows = []
    for when, books in (("before", report.books_before), ("after", report.books_after)):
        resident = ", ".join(f"{name} {n / _MB:.1f}" for name, n in books["resident"].items())
        figures = [f"{books[f'{amount}_bytes'] / _MB:.1f}" for amount in amounts]
        rows.append((when, *figures, resident or "nothing"))
    title = f"the books of {report.device}, MB"
    print_table(("", *amounts, "resident"), rows, right=amounts, title=title)
    click.echo()


def _print_memory(report: DemoReport) -> None:
    rows = []
    for model, booked in report.booked.items():
        # A Python worker has no name on its command line, and the ear is the only one here.
        named = "" if model == "ear" else model
        peak = report.measured.peak_of(named)
        engines = sum(life.model == named for life in report.measured.lives)
        if peak is not None:
            amounts = (f"{booked / _MB:.1f}", f"{peak / _MB:.1f}", f"{peak / booked:.3f}")
            rows.append((model, *amounts, engines))
    figures = ("booked", "measured", "measured / booked", "engines")
    print_table(("model", *figures), rows, right=figures, title="booked and measured, MB")
    click.echo()
