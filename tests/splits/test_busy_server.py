"""An RPC server serves one client at a time: a second client gets an error at once, and it stays."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import measure
from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from backends.llama.rpc.connections import in_use
from backends.llama.rpc.servers import rpc_devices
from backends.machine.processes import command_line
from backends.measure import whole_machine as measuring
from budget.errors import ConfigError, MeasurementFailed
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel
from budget.placement.machine_rates import LoadFigures, MachineFigures, SideFigures
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog
from shim.placement import build_plan as building
from shim.placement.build_plan import PlanBuilder
from shim.placement.plan_file import write_plan
from tests.splits.conftest import ALL_LAYERS
from tests.splits.support import RpcServer

pytestmark = pytest.mark.real

RATES = {"F16": 1e10, "Q8_0": 1e10}
FIGURES = MachineFigures(
    {HOST: SideFigures(RATES, 0.0, 6e-5), "RPC0": SideFigures({"F16": 9e10}, 0.0, 0.0)},
    LoadFigures(0.2, {"none": 5e8}, {"none": 2e9}),
    {HOST: 0, "RPC0": 0},
)


@pytest.fixture
def other(rpc: RpcServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Another client, connected; it is not waited for long."""
    monkeypatch.setattr("backends.footprint.dry_run._BUSY_S", 0.2)
    monkeypatch.setattr("backends.llama.rpc.servers._CONNECT_S", 0.2)
    host, _, port = rpc.endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as client:
        yield client


def args_on(server: RpcServer) -> EngineArgs:
    """Everything on the server."""
    return EngineArgs(1024, n_gpu_layers=ALL_LAYERS, rpc=(server.endpoint,), devices=("RPC0",))


def test_the_header_answers_while_the_server_is_busy(
    rpc: RpcServer, other: socket.socket, split_models: dict[str, Path], tmp_path: Path
) -> None:
    """The same bytes, without waiting; once the other client has left, they are measured."""
    header, args = read_header(split_models["F16"]), args_on(rpc)
    found = Inspector(FootprintCache(tmp_path)).placement(header, args, "RPC0")
    assert found.source == "closed-form"
    assert f"{rpc.endpoint} serves another client" in found.reason
    other.close()
    assert not in_use(rpc.endpoint)
    measured = Inspector(FootprintCache(tmp_path)).placement(header, args, "RPC0")
    assert measured.source == "dry-run"
    for device, part in measured.footprints.items():
        mine = found.footprints[device]
        assert replace(mine, overhead_bytes=0) == replace(part, overhead_bytes=0)


def test_asking_a_busy_server_is_refused_and_leaves_it_alive(
    rpc: RpcServer, other: socket.socket, split_models: dict[str, Path]
) -> None:
    """A client that speaks and gives up would end it with its first answer."""
    with pytest.raises(MeasurementFailed, match="busy with another client") as caught:
        measure(split_models["F16"], args_on(rpc))
    assert caught.value.facts["busy"] == [rpc.endpoint]
    with pytest.raises(ConfigError, match="serves another client"):
        rpc_devices([rpc.endpoint])
    other.close()
    assert [device.name for device in rpc_devices([rpc.endpoint])] == ["RPC0"]
    assert command_line(rpc.pid)


def test_two_dry_runs_at_a_time_wait_for_each_other(
    rpc: RpcServer, split_models: dict[str, Path], tmp_path: Path
) -> None:
    """A keeper that prepares several models does not find the server busy with itself."""
    inspector = Inspector(FootprintCache(tmp_path))
    headers = [read_header(split_models[kind]) for kind in ("F16", "Q8_0", "Q4_K_M", "Q4_0")]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda h: inspector.placement(h, args_on(rpc), "RPC0"), headers)
        assert {placement.source for placement in found} == {"dry-run"}


def test_what_is_no_address_is_not_in_use() -> None:
    """Nothing is guessed of it, and nothing fails."""
    assert not in_use("no-such-host.invalid:1")
    assert not in_use("words")


def test_a_build_on_an_rpc_device_is_what_later_starts_use(
    rpc: RpcServer,
    split_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dry runs of the ends and the quarters on the server; the plan's start asks it for none."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring.MachineMeasure, "run", lambda _self, _devices: FIGURES)

    def calibrated(**_says: object) -> OverheadModel:
        return DEFAULT_OVERHEAD

    monkeypatch.setattr(building, "calibrate", calibrated)
    config = Config.from_mapping(
        {
            "budget": {"device": "RPC0", "rpc": [rpc.endpoint], "limit": "1GiB"},
            "models": {"m": {"path": str(split_models["F16"]), "context": 1024}},
        }
    )
    builder = PlanBuilder(config)
    plan = builder.build(None)
    assert builder.errors == {}
    (key,) = plan.entries
    entry = plan.entry(key)
    assert entry is not None
    points = entry.variants[0].points
    assert [p.n_gpu_layers for p in points] == [0, 1, 2, 4, ALL_LAYERS]
    assert {p.source for p in points} == {"dry-run"}
    write_plan(plan)

    def refuse(*_args: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Inspector, "placement", refuse)
    (prepared,) = build_catalog(config).prepared.values()
    assert prepared.placements[0].args.n_gpu_layers == ALL_LAYERS
    assert prepared.placements[0].footprints["RPC0"] == points[-1].devices["RPC0"]
