"""What an engine's process takes on this machine: measured, fitted, kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.footprint import machine_overhead
from backends.footprint.calibrate import CalibrationPoint, calibrate, fit_overhead
from backends.footprint.machine_overhead import (
    measured_overhead,
    store_overhead,
    stored_overhead,
)
from budget.errors import MeasurementFailed
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel

KNOWN = OverheadModel(5_000_000, 6_000_000, 90_000, 140, 2_200_000, 133, 12, 100_000, 0)


def points(known: OverheadModel) -> list[CalibrationPoint]:
    """Processes that hold exactly what the coefficients say."""
    return [
        CalibrationPoint(
            vocab,
            layers,
            slots,
            known.base_bytes
            + known.layer_bytes * layers
            + known.token_bytes * vocab
            + slots * (known.slot_bytes + known.candidate_bytes * vocab),
            known.code_bytes,
        )
        for vocab, layers, slots in (
            (2000, 2, 1),
            (2000, 26, 1),
            (64000, 2, 1),
            (2000, 2, 4),
            (64000, 2, 4),
        )
    ]


def test_the_fit_finds_the_coefficients_it_was_made_from() -> None:
    """Each of the five that are varied, and the code's share; the others stay as they are."""
    found = fit_overhead(points(KNOWN))
    assert found.base_bytes == pytest.approx(KNOWN.base_bytes, rel=0.001)
    assert found.layer_bytes == pytest.approx(KNOWN.layer_bytes, rel=0.001)
    assert (found.token_bytes, found.candidate_bytes) == (140, 12)
    assert found.slot_bytes == pytest.approx(KNOWN.slot_bytes, rel=0.001)
    assert (found.code_bytes, found.merge_bytes) == (6_000_000, DEFAULT_OVERHEAD.merge_bytes)


def test_figures_that_make_no_sense_are_refused() -> None:
    """Something else took the memory: nothing is kept."""
    broken = [
        CalibrationPoint(p.n_vocab, p.n_layers, p.slots, -p.n_vocab, 0) for p in points(KNOWN)
    ]
    with pytest.raises(MeasurementFailed, match="own memory was fitted"):
        fit_overhead(broken)


@pytest.mark.real
def test_what_is_kept_is_used_and_damage_means_the_default(tmp_path: Path) -> None:
    """A file of this build alone; a broken one is as none."""
    assert stored_overhead(tmp_path) == DEFAULT_OVERHEAD
    path = store_overhead(KNOWN, tmp_path)
    assert stored_overhead(tmp_path) == KNOWN
    path.write_text('{"base_bytes": []}')
    assert stored_overhead(tmp_path) == DEFAULT_OVERHEAD


@pytest.mark.real
def test_another_machine_s_figures_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder may be shared by several machines."""
    store_overhead(KNOWN, tmp_path)
    monkeypatch.setattr(machine_overhead, "hardware", lambda: {"cpu": "another"})
    assert measured_overhead(tmp_path) is None


@pytest.mark.real
def test_real_engines_are_measured_near_the_defaults(tmp_path: Path) -> None:
    """Five small engines: the machine's own coefficients, of the size that is booked without them."""
    said: list[tuple[int, int]] = []
    found = calibrate(tmp_path, say=lambda done, steps: said.append((done, steps)))
    assert said == [(number, 5) for number in range(5)]
    assert stored_overhead(tmp_path) == found
    assert 0.5 < found.base_bytes / DEFAULT_OVERHEAD.base_bytes < 2
    assert 0.5 < found.token_bytes / DEFAULT_OVERHEAD.token_bytes < 2
    assert 0.3 < found.layer_bytes / DEFAULT_OVERHEAD.layer_bytes < 2
