"""Layers that really move to an RPC device, and answers that stay the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from budget.footprint import HOST, EngineArgs, Placement
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog
from tests.splits.conftest import ALL_LAYERS, OpenSplit
from tests.splits.support import RpcServer, rpc_server

pytestmark = pytest.mark.real

LAYERS = (0, 2, ALL_LAYERS)
# llama.cpp logs MiB with two decimals, at most five lines a device.
LOG_PRECISION_BYTES = 5 * 5243
ASK: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "seed": 1}


def entries(file: Path, *, repack: bool) -> dict[str, Any]:
    """One file as several models, each with so many layers on the device."""
    same = {"path": str(file), "context": 512, "repack": repack, "threads": 1}
    return {f"m{n}": {**same, "n_gpu_layers": n} for n in LAYERS}


def buffers(placement: Placement) -> dict[str, int]:
    """What a placement says that the engine reports by device: all but its overhead."""
    parts = placement.footprints.items()
    return {device: part.total_bytes - part.overhead_bytes for device, part in parts}


@pytest.mark.parametrize(
    ("kind", "repack"), [("F16", True), ("Q8_0", True), ("Q4_K_M", False), ("Q4_0", False)]
)
def test_layers_move_and_answers_stay(
    kind: str, repack: bool, split_models: dict[str, Path], rpc: RpcServer, split: OpenSplit
) -> None:
    """Reported buffers are where the placement said, byte for byte as logged; text is identical."""
    opened = split(rpc, entries(split_models[kind], repack=repack))
    placed = build_catalog(opened.shim.config).prepared
    on_device, answers = [], set()
    for name in entries(split_models[kind], repack=repack):
        answers.add(opened.shim.chat(name, "Tell me of the sea.", **ASK).content)
        reported = opened.engine(name)["reported"]
        for device, expected in buffers(placed[name].placements[0]).items():
            assert abs(reported.get(device, 0) - expected) <= LOG_PRECISION_BYTES, (name, device)
        on_device.append(reported.get("RPC0", 0))
    assert len(answers) == 1
    assert on_device[0] == 0 < on_device[1] < on_device[2]


def test_an_rpc_server_holds_one_engine_at_a_time(
    split_models: dict[str, Path], rpc: RpcServer, split: OpenSplit
) -> None:
    """It serves one client: the second model takes the first one's place, however small both are."""
    files = {"a": split_models["F16"], "b": split_models["Q8_0"]}
    models = {n: {"path": str(file), "context": 512} for n, file in files.items()}
    opened = split(rpc, models)
    for name in ("a", "b", "a"):
        assert opened.shim.chat(name, "Hello.", **ASK).residency.cold
        other = "b" if name == "a" else "a"
        assert opened.engine(other)["bytes"] == {}
    row = opened.engine("a")
    assert opened.reserved() == {HOST: row["bytes"][HOST], "RPC0": row["bytes"]["RPC0"]}


def test_an_automatic_split_is_whole_then_fewer_layers_then_the_cpu(
    split_models: dict[str, Path], rpc: RpcServer
) -> None:
    """Each placement asks the device for less than the one before."""
    budget = {"device": "RPC0", "rpc": [rpc.endpoint], "limit": "1GiB"}
    models = {"m": {"path": str(split_models["F16"]), "context": 512}}
    catalog = build_catalog(Config.from_mapping({"budget": budget, "models": models}))
    assert set(catalog.limits) == {HOST, "RPC0"}
    assert catalog.limits["RPC0"] == 1 << 30
    placements = catalog.prepared["m"].placements
    assert [p.args.n_gpu_layers for p in placements] == [ALL_LAYERS, ALL_LAYERS // 2, 0]
    asked = [dict(p.bookings).get("RPC0", 0) for p in placements]
    assert asked[0] > asked[1] > asked[2] == 0


def test_layers_spread_over_two_rpc_devices(split_models: dict[str, Path], rpc: RpcServer) -> None:
    """Two endpoints are two devices; both take weights, and what both take is what one would."""
    header = read_header(split_models["F16"])
    with rpc_server() as second:
        args = EngineArgs(n_ctx=512, n_gpu_layers=ALL_LAYERS, rpc=(rpc.endpoint, second.endpoint))
        both = replace(args, devices=("RPC0", "RPC1"), tensor_split=(3, 2))
        parts = Inspector().placement(header, both, "RPC0").footprints
        alone = Inspector().placement(header, args, "RPC0").footprints
    assert parts["RPC0"].weights_bytes > 0
    assert parts["RPC1"].weights_bytes > 0
    spread = parts["RPC0"].weights_bytes + parts["RPC1"].weights_bytes
    assert spread == alone["RPC0"].weights_bytes
