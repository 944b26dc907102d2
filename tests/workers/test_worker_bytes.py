"""The bytes of Python models: declared, guessed, measured, learned, and over the limit."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.engine_process.ceiling import PlausibleCeilings
from budget.errors import NeverFits
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim import Shim
from shim.keeper.catalog.corrections import Seen, compare
from tests.processes import wait_until
from tests.workers.conftest import Make

MIB = 1 << 20


def row(shim: Shim, name: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    return next(found for found in shim.status()["engines"] if name in found["models"])


def booked(shim: Shim, name: str) -> int:
    """The bytes that are booked on the host for a model's engine."""
    return int(row(shim, name)["bytes"].get(HOST, 0))


def test_what_is_declared_is_booked_and_more_is_learned(make: Make) -> None:
    """What it took is seen at the latest when it is unloaded, and the next load books that."""
    shim = make({"m": {"factory": "speech:Transcriber", "bytes": "16MiB", "options": {"mib": 64}}})
    assert shim.call("m").residency.cold
    shim.unload("m")
    shim.load("m")
    assert 64 * MIB < booked(shim, "m") < 200 * MIB
    assert "corrected by what it took" in row(shim, "m")["placement"]


def test_what_is_declared_is_booked_also_where_less_was_learned_before(make: Make) -> None:
    """`bytes` is never too little: a model that takes more while it works is declared so."""
    entry = {"factory": "speech:Transcriber", "bytes": "16MiB", "options": {"mib": 64}}
    first = make({"m": entry})
    first.call("m")
    first.unload("m")
    first.load("m")
    assert 64 * MIB < booked(first, "m") < 200 * MIB
    first.close()
    second = make({"m": {**entry, "bytes": "300MiB"}})
    second.load("m")
    assert booked(second, "m") == 300 * MIB


def test_without_bytes_the_first_load_is_a_guess_that_says_so(make: Make, folder: Path) -> None:
    """1 GiB, or the sizes of the files; the second load books what the first took, though it was short."""
    (folder / "weights.bin").write_bytes(bytes(3 * MIB))
    shim = make(
        {
            "guess": {"factory": "speech:Transcriber"},
            "files": {
                "factory": "speech:Transcriber",
                "files": ["weights.bin"],
                "options": {"name": "f"},
            },
        }
    )
    shim.call("guess")
    assert booked(shim, "guess") == 1 << 30
    assert "1 GiB, until it is measured" in row(shim, "guess")["placement"]
    for _ in range(5):  # a look may find no figure, as while the kernel is busy
        shim.unload("guess")
        shim.call("guess")
        if booked(shim, "guess") < 1 << 30:
            break
    assert 8 * MIB < booked(shim, "guess") < 200 * MIB
    shim.call("files")
    assert "the sizes of its files, until it is measured" in row(shim, "files")["placement"]


def test_far_too_few_declared_bytes_end_in_the_over_limit_state_said_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The device admits nothing more, the log has one line, and calls of the model go on."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    shim = make(
        {"m": {"factory": "speech:Transcriber", "bytes": "1MiB", "options": {"mib": 96}}},
        budget={"device": "host", "limit": "64MiB"},
    )
    shim.pin("m")
    assert wait_until(lambda: booked(shim, "m") > 96 * MIB)
    device = next(d for d in shim.status()["devices"] if d["device"] == HOST)
    assert device["over_limit"]
    assert shim.call("m").value["name"] == "tiny"
    said = [r.getMessage() for r in caplog.records if "host is over its limit" in r.getMessage()]
    assert len(said) == 1


def test_what_can_never_fit_is_denied_before_anything_runs(make: Make) -> None:
    """With the three numbers."""
    shim = make({"m": {"factory": "speech:Transcriber", "bytes": "8GiB"}})
    with pytest.raises(NeverFits) as caught:
        shim.call("m")
    assert caught.value.facts["requested_bytes"] == 8 << 30
    assert row(shim, "m")["pid"] is None


PLACED = Placement(EngineArgs(n_ctx=0), {HOST: Footprint(weights_bytes=1 << 30)}, "guess")


def test_a_guess_comes_down_after_the_first_call_and_a_declaration_never() -> None:
    """What is believed after a load and a call is the larger of both; people's own figure stays."""
    after_call = Seen({HOST: 300 * MIB}, {HOST: 320 * MIB}, uses=1)
    found = compare(PLACED, after_call)
    assert found is not None
    assert found[HOST].corrected_bytes == 320 * MIB
    assert compare(PLACED, replace(after_call, uses=0)) is None
    declared = replace(PLACED, source="declared")
    assert compare(declared, Seen({}, {HOST: 320 * MIB}, uses=9)) is None


def test_a_model_far_above_its_guess_is_learned_and_one_far_above_its_declaration_is_not() -> None:
    """A guess says nothing of what is plausible: what the load took does."""
    huge = 20 << 30
    found = compare(PLACED, Seen({HOST: huge}, {HOST: huge}, uses=1))
    assert found is not None
    assert found[HOST].is_possible
    found = compare(replace(PLACED, source="declared"), Seen({}, {HOST: huge}, uses=1))
    assert found is not None
    assert not found[HOST].is_possible


def test_the_ceiling_is_far_above_what_people_declare() -> None:
    """Four times the booking and 2 GiB: beyond that the model leaks. A margin of 0 bounds nothing."""
    ceilings = PlausibleCeilings.of(PLACED, 512 * MIB)
    assert ceilings.exceeded("m", {HOST: 6 << 30}, ()) is None
    assert ceilings.exceeded("m", {HOST: (6 << 30) + 1}, ()) is not None
    assert PlausibleCeilings.of(PLACED, 0).exceeded("m", {HOST: 1 << 50}, ()) is None
