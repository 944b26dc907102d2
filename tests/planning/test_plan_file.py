"""The plan on disk: what is kept, what is refused, and that a start opens no model."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.footprint.machine_overhead import measured_overhead, store_overhead
from backends.gguf import read_header
from backends.measure import whole_machine as measuring
from budget.errors import ConfigError, MeasurementFailed, RoleViolation
from budget.footprint import HOST
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel
from budget.placement.machine_rates import LoadFigures, MachineFigures, SideFigures
from shim.config import Config
from shim.keeper.catalog import preparing
from shim.keeper.catalog.catalog import build_catalog
from shim.placement import build_plan as building
from shim.placement import plan_file as files
from shim.placement.build_plan import PlanBuilder
from shim.placement.plan_file import (
    PlacementPlan,
    plan_path,
    read_plan,
    refusal,
    to_text,
    usable_plan,
    write_plan,
)

FIGURES = MachineFigures(
    {HOST: SideFigures({"F16": 1e10, "Q4_K": 8e9}, 0.0, 6e-5)},
    LoadFigures(0.2, {"none": 5e8}, {"none": 2e9}),
    {HOST: 0},
)

OVERHEAD = replace(DEFAULT_OVERHEAD, base_bytes=7_000_000)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, and a machine that is measured in no time."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring.MachineMeasure, "run", lambda _self, _devices: FIGURES)
    monkeypatch.setattr(building, "calibrate", lambda **_says: store(OVERHEAD))
    return tmp_path


def store(found: OverheadModel) -> OverheadModel:
    """Keep figures as a calibration does."""
    store_overhead(found)
    return found


@pytest.fixture
def config(state: Path, tiny_models: dict[str, Path]) -> Config:
    """Two models in files of their own, which a test may change."""
    paths = {}
    for name in ("classifier", "evaluator"):
        paths[name] = state / f"{name}.gguf"
        paths[name].write_bytes(tiny_models[name].read_bytes())
    return Config.for_files(paths, budget={"device": "host"})


def written(config: Config) -> PlacementPlan:
    """The plan of a configuration, measured and written."""
    builder = PlanBuilder(config)
    plan = builder.build(usable_plan()[0])
    assert builder.errors == {}
    write_plan(plan)
    return plan


def lines() -> dict[str, str]:
    """The raw text of each entry in the file."""
    rows = plan_path().read_text().splitlines()
    return {row.split(":", 1)[0]: row.rstrip(",") for row in rows if "identity" in row}


@pytest.mark.real
def test_changing_one_file_measures_that_entry_and_keeps_the_others_bytes(config: Config) -> None:
    """The other entry's text is the same to the byte; the changed one's is not."""
    written(config)
    before = lines()
    changed = config.models["classifier"].path
    assert changed is not None
    os.utime(changed, ns=(1, 1))
    builder = PlanBuilder(config)
    write_plan(builder.build(usable_plan()[0]))
    after = lines()
    assert builder.measured == ["classifier"]
    same = {key for key in before if before[key] == after[key]}
    assert [key.split("-")[0] for key in same] == ['"evaluator']
    assert before.keys() == after.keys()


@pytest.mark.real
def test_starting_from_a_plan_opens_no_model_file(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Placements, engines and limits are as without a plan, and no header is read for them."""
    store(OVERHEAD)
    without = build_catalog(config)
    written(config)

    def refuse(*_args: Any, **_fields: Any) -> Any:
        raise AssertionError("a model file was inspected")

    monkeypatch.setattr(preparing, "read_header", refuse)
    monkeypatch.setattr(preparing, "placements", refuse)
    found = build_catalog(config)
    assert found.errors == {}
    assert found.engines.keys() == without.engines.keys()
    for name, prepared in found.prepared.items():
        plain = without.prepared[name]
        assert [p.args for p in prepared.placements] == [p.args for p in plain.placements]
        assert [p.bookings for p in prepared.placements] == [p.bookings for p in plain.placements]
        assert prepared.carries_kv == plain.carries_kv


@pytest.mark.real
def test_a_changed_file_is_measured_by_the_catalog_itself(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its entry is not used, and the log says why; the other one's is."""
    written(config)
    path = config.models["classifier"].path
    assert path is not None
    os.utime(path, ns=(1, 1))
    read: list[str] = []

    def noting(file: Path) -> Any:
        read.append(file.name)
        return read_header(file)

    monkeypatch.setattr(preparing, "read_header", noting)
    with caplog.at_level("INFO", "keepwarm.keeper"):
        found = build_catalog(config)
    assert (found.errors, read) == ({}, ["classifier.gguf"])
    assert "its file changed since it was measured" in caplog.text


@pytest.mark.real
def test_a_plan_does_not_let_a_coarse_evaluator_in(config: Config) -> None:
    """An entry measured for a model without a role serves no evaluator; the next build names the error."""
    written(config)
    path = str(config.models["classifier"].path)
    models = {"classifier": {"path": path, "role": "evaluator"}}
    judging = Config.from_mapping({"budget": {"device": "host"}, "models": models})
    assert isinstance(build_catalog(judging).errors["classifier"], RoleViolation)
    builder = PlanBuilder(judging)
    builder.build(usable_plan()[0])
    assert builder.measured == []
    assert "8.5" in builder.errors["classifier"]


@pytest.mark.real
def test_a_plan_of_another_machine_or_build_is_refused_with_the_reason(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason names what differs; the catalog says it and measures."""
    plan = written(config)
    other = replace(plan, hardware={**plan.hardware, "cores": 999})
    assert "cores was 999" in (refusal(other) or "")
    assert "llama.cpp older" in (refusal(replace(plan, build="older")) or "")
    write_plan(other)
    with caplog.at_level("WARNING", "keepwarm.keeper"):
        found = build_catalog(config)
    assert "other hardware: cores was 999" in caplog.text
    assert set(found.prepared) == {"classifier", "evaluator"}
    monkeypatch.setattr(files, "llama_build", lambda: "newer")
    assert "here is newer" in (refusal(plan) or "")


def test_the_file_is_private_and_survives_a_round_trip(state: Path) -> None:
    """Mode 0600; what is read is what was written; writing it again changes no byte."""
    plan = PlacementPlan(
        {"cpu": "x"}, "b", "quick", FIGURES, {"a-1": {"n": 1}}, {"a-1": {"n_ctx": 5}}
    )
    path = write_plan(plan)
    assert path.stat().st_mode & 0o777 == 0o600
    again = read_plan()
    assert again == plan
    assert to_text(again) == path.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', "null"])
def test_a_damaged_plan_is_said_and_not_used(state: Path, text: str) -> None:
    """Whatever is in the file, the answer is no plan and a reason."""
    plan_path().parent.mkdir(parents=True, exist_ok=True)
    plan_path().write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        read_plan()
    plan, reason = usable_plan()
    assert plan is None
    assert "keepwarm build" in reason


def test_a_damaged_entry_is_no_entry() -> None:
    """One broken entry is measured again; it does not break the others."""
    plan = PlacementPlan({}, "b", "quick", FIGURES, {"a-1": {"stamp": 3}})
    assert plan.entry("a-1") is None
    assert json.loads(to_text(plan))["models"] == {"a-1": {"stamp": 3}}


@pytest.mark.real
def test_a_build_measures_an_engine_s_own_memory_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build takes what the first one kept; every entry has it in its bytes."""
    calls: list[int] = []

    def calibrated(**_says: object) -> OverheadModel:
        calls.append(1)
        return store(OVERHEAD)

    monkeypatch.setattr(building, "calibrate", calibrated)
    plan = written(config)
    entry = plan.entry(next(iter(plan.entries)))
    assert entry is not None
    booked = entry.variants[0].points[0].devices[HOST].overhead_bytes
    assert booked > OVERHEAD.base_bytes + OVERHEAD.code_bytes > DEFAULT_OVERHEAD.base_bytes
    again = PlanBuilder(config)
    again.build(usable_plan()[0])
    assert (len(calls), again.overhead, again.measured) == (1, OVERHEAD, [])


@pytest.mark.real
def test_entries_made_before_the_overhead_was_measured_are_made_again(config: Config) -> None:
    """Their bytes would be those of another machine."""
    plan = written(config)
    store(DEFAULT_OVERHEAD)
    for file in (Path(os.environ["XDG_CACHE_HOME"]) / "keepwarm").glob("overhead-*.json"):
        file.unlink()
    builder = PlanBuilder(config)
    builder.build(plan)
    assert builder.measured == ["classifier", "evaluator"]
    assert measured_overhead() == OVERHEAD


@pytest.mark.real
def test_an_overhead_that_cannot_be_measured_is_said_and_assumed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build goes on: the default figures were measured too, on another machine."""

    def broken(**_says: object) -> OverheadModel:
        raise MeasurementFailed("llama-server did not start for the calibration.")

    monkeypatch.setattr(building, "calibrate", broken)
    said: list[str] = []
    builder = PlanBuilder(config, say=said.append)
    builder.build(None)
    assert builder.overhead == DEFAULT_OVERHEAD
    assert any("could not be measured" in line for line in said)


@pytest.mark.real
def test_the_measured_context_of_a_gpu_is_booked(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the round figure that is assumed of any."""
    figures = replace(FIGURES, context_bytes={"cuda:0": 300_000_000})
    monkeypatch.setattr(measuring.MachineMeasure, "run", lambda _self, _devices: figures)
    builder = PlanBuilder(config)
    builder.build(None)
    assert builder.overhead == replace(OVERHEAD, device_bytes=300_000_000) == measured_overhead()


@pytest.mark.real
def test_a_model_on_a_disk_that_is_not_mounted_keeps_its_entry(config: Config, state: Path) -> None:
    """A build meanwhile says that it cannot be read; afterwards nothing is measured again."""
    written(config)
    before = lines()
    path = config.models["classifier"].path
    assert path is not None
    path.rename(state / "away")
    builder = PlanBuilder(config)
    write_plan(builder.build(usable_plan()[0]))
    assert set(builder.errors) == {"classifier"}
    assert lines() == before
    (state / "away").rename(path)
    builder = PlanBuilder(config)
    builder.build(usable_plan()[0])
    assert (builder.measured, builder.errors) == ([], {})


def test_a_plan_is_written_in_place_of_whatever_lies_there(state: Path) -> None:
    """A folder of that name is moved aside, not emptied."""
    plan_path().mkdir(parents=True)
    (plan_path() / "photo").write_text("mine")
    write_plan(PlacementPlan({"cpu": "x"}, "b", "quick", FIGURES))
    assert read_plan() is not None
    assert (plan_path().with_name("plan.json.damaged") / "photo").read_text() == "mine"
