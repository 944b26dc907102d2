"""What the demo found, as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from harness.demo.run import DemoReport
from harness.pipeline import StageReply
from shim import Reply, Residency

_MB = 1e6


def to_json(report: DemoReport) -> dict[str, Any]:
    """The stable JSON of `keepwarm demo --json`. Seconds and bytes; null where there is no figure.

    An embedding has no first token and no tokens per second.
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


def show(report: DemoReport, console: Console) -> None:
    """Print the tables."""
    console.print(_requests_table(report))
    console.print(Text("The models have random weights: their text is noise, by design.", "italic"))
    console.print(_books_table(report), _memory_table(report), sep="\n")
    peak, limit = report.measured.peak_bytes, report.limit_bytes
    console.print(
        f"{report.loads} loads, {report.evictions} evictions. Measured from outside every 50 ms "
        f"({report.measured.samples} samples): peak {peak / _MB:.1f} MB of a limit of "
        f"{limit / _MB:.1f} MB ({peak / limit:.1%}).",
        highlight=False,
    )
    console.print(_how_to_open(report), soft_wrap=True, highlight=False)


def _how_to_open(report: DemoReport) -> Group:
    return Group(
        Text(f"\ntrace: {report.trace}", "bold"),
        Text(f"  open it: keepwarm trace open {report.trace}"),
        Text("  or drop the file on https://ui.perfetto.dev"),
        Text(f"runs:  {report.runs}"),
    )


def _requests_table(report: DemoReport) -> Table:
    table = Table(title="requests", title_justify="left", box=None, padding=(0, 1))
    table.add_column("#", justify="right")
    table.add_column("stage")
    table.add_column("model")
    for heading in ("waited", "loaded", "first token", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("evicted")
    for item in report.items:
        for number, staged in enumerate(item.replies):
            table.add_row(str(item.index + 1) if number == 0 else "", *_cells(staged))
    return table


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


def _books_table(report: DemoReport) -> Table:
    table = Table(
        "",
        title=f"\nthe books of {report.device}, MB",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    for heading in ("limit", "protected", "evictable", "free"):
        table.add_column(heading, justify="right")
    table.add_column("resident")
    for when, books in (("before", report.books_before), ("after", report.books_after)):
        table.add_row(when, *_book_cells(books))
    return table


def _book_cells(books: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("limit_bytes", "protected_bytes", "evictable_bytes", "free_bytes")
    amounts = [f"{books[key] / _MB:.1f}" for key in keys]
    resident = ", ".join(f"{name} {n / _MB:.1f}" for name, n in books["resident"].items())
    return (*amounts, resident or "nothing")


def _memory_table(report: DemoReport) -> Table:
    table = Table("model", title="\nbooked and measured, MB", title_justify="left", box=None)
    for heading in ("booked", "measured", "measured / booked", "engines"):
        table.add_column(heading, justify="right")
    for model, booked in report.booked.items():
        peak = report.measured.peak_of(model)
        if peak is None:
            continue
        engines = sum(life.model == model for life in report.measured.lives)
        table.add_row(
            model, f"{booked / _MB:.1f}", f"{peak / _MB:.1f}", f"{peak / booked:.3f}", str(engines)
        )
    return table
