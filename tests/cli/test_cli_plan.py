"""What `keepwarm plan` decides, on models that are only numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backends.machine.devices import Device
from budget.errors import BadModelFile, ConfigError, EndpointUnavailable
from budget.footprint import EngineArgs, Footprint, Placement
from shim.cli.commands.plan import preview as planning
from shim.cli.commands.plan.preview import PlanRow, Preview, make_plan
from shim.config import Config
from shim.keeper.catalog.broken_models import BrokenModel
from shim.keeper.catalog.catalog import Catalog, CatalogEngine, Prepared
from shim.placement.budgeted_devices import BudgetDevices

MIB = 2**20
PRECISE = {"quantization": "Q8_0", "min_bits_per_weight": 8.5}
COARSE = {"quantization": "Q4_0", "min_bits_per_weight": 4.5}
Sizes = dict[str, list[dict[str, int]]]
"""By model: the bytes by device of each of its placements."""


def placement(by_device: dict[str, int]) -> Placement:
    """A placement of so many MiB; layers on the GPU when it takes any there."""
    layers = 9 if "cuda:0" in by_device else 0
    parts = {device: Footprint(weights_bytes=n * MIB) for device, n in by_device.items()}
    tier = 0 if layers else 1
    return Placement(EngineArgs(512, n_gpu_layers=layers), parts, "closed-form", 8, tier=tier)


def plan(
    monkeypatch: pytest.MonkeyPatch,
    sizes: Sizes,
    *,
    shared: tuple[str, ...] = (),
    coarse: tuple[str, ...] = (),
    limits: dict[str, int] | None = None,
    **entries: dict[str, Any],
) -> Preview:
    """The plan for models of these sizes; `shared` are on one engine, `coarse` have 4 bits a weight."""
    models = {name: {"path": f"{name}.gguf", **entries.get(name, {})} for name in sizes}
    models |= {name: entry for name, entry in entries.items() if name not in sizes}

    def build(config: Config) -> Catalog:
        bounds = {d: n * MIB for d, n in (limits or {"host": 100}).items()}
        main = next(d for d in reversed(bounds))
        device = Device(main, "host", 0, 0, main, "")
        catalog = Catalog(config, BudgetDevices((device,), bounds, {}))
        for name, options in sizes.items():
            engine_id = "shared" if name in shared else f"{name}-1"
            placed = tuple(placement(option) for option in options)
            entry, header = (
                config.models[name],
                cast("Any", SimpleNamespace(**(COARSE if name in coarse else PRECISE))),
            )
            catalog.prepared[name] = Prepared(name, entry, header, placed, engine_id, ())
            names = shared if name in shared else (name,)
            catalog.engines[engine_id] = CatalogEngine(
                engine_id, Path(), placed, names, (), "llama", "Q8_0", None, None
            )
        return catalog

    monkeypatch.setattr(planning, "build_catalog", build)
    return make_plan(Config.from_mapping({"models": models}))


def row(found: Preview, name: str) -> PlanRow:
    """The row of a model."""
    return next(r for r in found.models if r.name == name)


def test_pins_come_first_and_the_others_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the file; one that does not fit leaves its place to a smaller one."""
    sizes: Sizes = {
        "a": [{"host": 40}],
        "b": [{"host": 35}],
        "c": [{"host": 20}],
        "p": [{"host": 30}],
    }
    found = plan(monkeypatch, sizes, p={"pin": True})
    assert [r.name for r in found.models if r.resident] == ["a", "c", "p"]
    assert (found.first.limit_bytes, found.first.reserved_bytes, found.first.free_bytes) == (
        100 * MIB,
        90 * MIB,
        10 * MIB,
    )
    assert row(found, "p").reason == "pinned (pin = true): 30.0 MiB that eviction may not touch"
    assert row(found, "a").reason == "fits: 40.0 MiB of 70.0 MiB free"
    assert row(found, "b").reason.startswith("loaded when asked for: 35.0 MiB with 30.0 MiB free")
    assert "would evict a" in row(found, "b").reason


def test_what_never_fits_says_so_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked, limit and pinned."""
    found = plan(monkeypatch, {"a": [{"host": 90}], "p": [{"host": 30}]}, p={"role": "evaluator"})
    assert not row(found, "a").resident
    assert row(found, "a").reason == (
        "never fits: asks for 90.0 MiB on host, where the limit is 100 MiB and pinned models hold "
        "30.0 MiB"
    )
    assert "its role is evaluator" in row(found, "p").reason


def test_names_on_one_engine_are_booked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second names the model with which it shares an engine."""
    found = plan(monkeypatch, {"a": [{"host": 60}], "b": [{"host": 60}]}, shared=("a", "b"))
    assert found.first.reserved_bytes == 60 * MIB
    assert row(found, "b").resident
    assert row(found, "b").reason == "shares the engine of a"


def test_a_gpu_that_is_too_small_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The placement that is used has its own layers and bytes; both devices' books hold."""
    whole, cpu = {"cuda:0": 70, "host": 5}, {"host": 60}
    limits = {"host": 100, "cuda:0": 50}
    found = plan(monkeypatch, {"a": [whole, cpu]}, limits=limits)
    assert found.first.device == "cuda:0"
    assert found.first.reserved_bytes == 0
    answer = row(found, "a").to_json()
    assert (answer["n_gpu_layers"], answer["total_bytes"], answer["resident"]) == (
        0,
        60 * MIB,
        True,
    )
    roomy = plan(monkeypatch, {"a": [whole, cpu]}, limits={**limits, "cuda:0": 80})
    assert row(roomy, "a").to_json()["n_gpu_layers"] == 9
    assert roomy.first.reserved_bytes == 70 * MIB


def test_pins_that_do_not_fit_together_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are for the keeper."""
    pinned = {"pin": True}
    with pytest.raises(ConfigError, match="do not fit together"):
        plan(monkeypatch, {"a": [{"host": 60}], "b": [{"host": 60}]}, a=pinned, b=pinned)


def test_models_that_cannot_be_read_or_run_elsewhere_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With why; a Hub file that is not here is not downloaded for a plan."""

    def absent(hf: str, *, offline: bool) -> Path:
        assert offline
        raise EndpointUnavailable(f"{hf} is not in the cache")

    monkeypatch.setattr(planning, "fetch_hub_file", absent)
    far, hub = {"url": "http://gpu:8000"}, {"hf": "o/r:h.gguf"}
    models = {"a": {"path": "a.gguf"}, "far": far, "hub": hub}

    def build(config: Config) -> Catalog:
        assert set(config.models) == {"a", "far"}
        host = Device("host", "host", 0, 0, "", "")
        catalog = Catalog(config, BudgetDevices((host,), {"host": MIB}, {}))
        catalog.broken_models["a"] = BrokenModel(
            BadModelFile("a.gguf: no GGUF.", hint="Get it anew.")
        )
        return catalog

    monkeypatch.setattr(planning, "build_catalog", build)
    answer = {
        r["name"]: r for r in make_plan(Config.from_mapping({"models": models})).to_json()["models"]
    }
    assert answer["a"]["reason"] == "a.gguf: no GGUF. Get it anew."
    assert answer["far"]["reason"] == "runs at http://gpu:8000"
    assert answer["hub"]["reason"] == "o/r:h.gguf is not downloaded yet. Run `keepwarm load hub`."
    assert all(r["total_bytes"] is None and not r["resident"] for r in answer.values())


def test_an_evaluator_that_is_too_coarse_is_not_planned_and_takes_no_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a client that overrides it by name has it loaded."""
    sizes: Sizes = {"judge": [{"host": 60}], "writer": [{"host": 60}]}
    judge = {"role": "evaluator", "pin": False}
    found = plan(monkeypatch, sizes, coarse=("judge",), judge=judge)
    rows = {row.name: row for row in found.models}
    assert "The evaluator judge is Q4_0" in rows["judge"].reason
    assert not rows["judge"].resident
    assert rows["writer"].resident
    assert found.first.reserved_bytes == 60 * MIB
