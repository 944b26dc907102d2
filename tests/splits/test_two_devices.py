"""Two RPC servers as two devices: models side by side, and one that only both together hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from budget.footprint import HOST, Placement
from shim import Shim
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog
from tests.splits.conftest import ALL_LAYERS
from tests.splits.support import rpc_server
from traces import RunTrace

pytestmark = pytest.mark.real

ASK: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "seed": 1}
# llama.cpp logs MiB with two decimals, at most five lines a device.
LOG_PRECISION_BYTES = 5 * 5243
BOTH = ("RPC0", "RPC1")
# Small batches: compute buffers are small beside the weights, as those of real models are.
SAME: dict[str, Any] = {"context": 512, "threads": 1, "n_batch": 64, "n_ubatch": 64}


@pytest.fixture
def servers() -> Iterator[list[str]]:
    """The addresses of two RPC servers."""
    with rpc_server() as first, rpc_server() as second:
        yield [first.endpoint, second.endpoint]


def configured(servers: list[str], limit: int | str, models: dict[str, Any]) -> Config:
    """A budget over both servers, with the same limit on each."""
    budget = {"devices": list(BOTH), "rpc": servers, "limit": limit}
    return Config.from_mapping(
        {"budget": budget, "models": {name: {**SAME, **entry} for name, entry in models.items()}}
    )


def engine(shim: Shim, model: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    return next(row for row in shim.status()["engines"] if model in row["models"])


def check_books(shim: Shim) -> None:
    """What is reserved on every device is what its engines have booked there."""
    status = shim.status()
    for device in status["devices"]:
        booked = sum(row["bytes"].get(device["device"], 0) for row in status["engines"])
        assert device["reserved_bytes"] == booked <= device["limit_bytes"]


def whole_bytes(servers: list[str], file: Path) -> dict[str, int]:
    """What a model takes whole on the first device."""
    catalog = build_catalog(configured(servers, "1GiB", {"m": {"path": str(file)}}))
    return dict(catalog.prepared["m"].placements[0].bookings)


def reported_as_placed(row: dict[str, Any], placement: Placement) -> None:
    """The engine's own buffer lines are where the placement said, and nowhere else."""
    said = {d: part.total_bytes - part.overhead_bytes for d, part in placement.footprints.items()}
    assert set(row["reported"]) == set(said)
    for device, expected in said.items():
        assert abs(row["reported"][device] - expected) <= LOG_PRECISION_BYTES, device


def test_models_lie_side_by_side_each_whole_on_a_device(
    servers: list[str], split_models: dict[str, Path]
) -> None:
    """Each limit holds one: the second goes to the other device, the third takes one's place."""
    limit = int(max(whole_bytes(servers, f)["RPC0"] for f in split_models.values()) * 1.05)
    models = {kind: {"path": str(split_models[kind])} for kind in ("F16", "Q8_0", "Q4_0")}
    config = configured(servers, limit, models)
    known = build_catalog(config).prepared
    with Shim(config, inline=True) as shim:
        for name in ("F16", "Q8_0"):
            assert shim.chat(name, "Hello.", **ASK).residency.cold
        rows = {name: engine(shim, name) for name in models}
        assert {d for n in ("F16", "Q8_0") for d in rows[n]["bytes"]} == {HOST, *BOTH}
        assert not shim.chat("F16", "Hello.", **ASK).residency.cold
        for name in ("F16", "Q8_0"):
            placed = known[name].placements[rows[name]["option_index"]]
            assert placed.args.n_gpu_layers == ALL_LAYERS
            reported_as_placed(rows[name], placed)
        check_books(shim)
        assert len(shim.chat("Q4_0", "Hello.", **ASK).residency.evicted) == 1
        check_books(shim)


def test_a_model_too_big_for_either_is_spread_over_both(
    servers: list[str], split_models: dict[str, Path], tmp_path: Path
) -> None:
    """It really runs there, its buffers are where the placement said, and its answer is the CPU's.

    The trace has its load on each device.
    """
    file = str(split_models["F16"])
    limit = int(whole_bytes(servers, split_models["F16"])["RPC0"] * 0.75)
    config = configured(servers, limit, {"big": {"path": file}})
    placements = build_catalog(config).prepared["big"].placements
    best = placements[0]
    assert (best.args.devices, sum(best.args.tensor_split)) == (BOTH, ALL_LAYERS)
    with (
        Shim(config, inline=True) as shim,
        RunTrace(directory=tmp_path) as run,
    ):
        spread = shim.chat("big", "Tell me of the sea.", **ASK).content
        row = engine(shim, "big")
        assert set(row["bytes"]) == {HOST, *BOTH}
        reported_as_placed(row, best)
        check_books(shim)
    assert run.problems == []
    assert run.trace_path is not None
    loads = [e for e in json.loads(run.trace_path.read_text()) if e.get("name") == "model_load big"]
    on = {event["args"]["keepwarm.device"]: event["args"]["keepwarm.bytes"] for event in loads}
    assert on == dict(best.bookings)
    alone = {"budget": {"device": "host"}, "models": {"big": {"path": file, **SAME}}}
    with Shim(alone, inline=True) as shim:
        assert shim.chat("big", "Tell me of the sea.", **ASK).content == spread
