"""The picture of a simulation: which model was resident when, and what each policy cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from budget.errors import ConfigError
from budget.simulation import Comparison, Trial

BAND_INCHES: Final = 0.22
MOST_BANDS: Final = 40
STAY_COLOUR: Final = "#4c78a8"
LOAD_COLOUR: Final = "#f58518"
BOUND_COLOUR: Final = "#54a24b"


def draw(found: Comparison, trial: Trial, path: Path) -> None:
    """Write a PNG: a band per model and policy with its stays and loads, and the load seconds.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure_class, colours = matplotlib_parts()
    wanted: dict[str, int] = {}
    for arrival in trial.arrivals:
        wanted[arrival.model] = wanted.get(arrival.model, 0) + 1
    names = sorted(wanted, key=lambda name: (-wanted[name], name))[:MOST_BANDS]
    heights = [max(1.2, BAND_INCHES * len(names))] * len(found.results)
    bars = max(1.0, 0.3 * (len(found.results) + 1))
    figure = figure_class(figsize=(12, sum(heights) + bars + 1.5), layout="constrained")
    axes = figure.subplots(
        len(heights) + 1, 1, squeeze=False, gridspec_kw={"height_ratios": [*heights, bars]}
    )
    for row, policy in enumerate(found.results):
        _bands(axes[row][0], found, policy, names)
        if row:
            axes[row][0].sharex(axes[0][0])
    axes[len(heights) - 1][0].set_xlabel("seconds")
    axes[0][0].legend(
        handles=[
            colours(color=STAY_COLOUR, label="resident"),
            colours(color=LOAD_COLOUR, label="loading"),
        ],
        loc="upper right",
        fontsize="small",
    )
    _bars(axes[-1][0], found)
    figure.savefig(path, format="png", dpi=110)


def matplotlib_parts() -> tuple[Any, Any]:
    """The classes that pictures are drawn with.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        # Half a second and an optional package: imported only when a picture is asked for.
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.patches import Patch  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"--plot needs matplotlib: {error}.", hint="Install it: pip install 'keepwarm[plot]'."
        ) from None
    return Figure, Patch


def _bands(axis: Any, found: Comparison, policy: str, names: list[str]) -> None:
    result = found.results[policy]
    place = {name: row for row, name in enumerate(names)}
    stays: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    loads: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for stay in result.metrics.stays:
        if stay.model in place:
            ready_s = min(stay.ready_s, stay.gone_s)
            stays[stay.model].append((ready_s, stay.gone_s - ready_s))
            loads[stay.model].append((stay.load_s, ready_s - stay.load_s))
    for name, row in place.items():
        axis.broken_barh(stays[name], (row - 0.38, 0.76), color=STAY_COLOUR, linewidth=0)
        # A load lasts seconds of a trace that may last days: an edge keeps it visible.
        axis.broken_barh(
            loads[name], (row - 0.38, 0.76), color=LOAD_COLOUR, edgecolor=LOAD_COLOUR, linewidth=0.6
        )
    axis.set_yticks(range(len(names)), names, fontsize="small")
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title(f"{policy}: {result.summary.loads} loads", loc="left", fontsize="medium")


def _bars(axis: Any, found: Comparison) -> None:
    label = "offline optimum" if found.exact else "lower bound"
    rows = [(name, result.summary.load_seconds) for name, result in found.results.items()]
    colours = [STAY_COLOUR] * len(rows)
    if found.optimum_seconds is not None:
        rows.append((label, found.optimum_seconds))
        colours.append(BOUND_COLOUR)
    drawn = axis.barh([name for name, _ in rows], [value for _, value in rows], color=colours)
    axis.bar_label(drawn, fmt="%.0f s", padding=3, fontsize="small")
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("load seconds")
