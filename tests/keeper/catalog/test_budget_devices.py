"""Which devices a keeper budgets, by their configuration and by what is there; GPUs are made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.footprint import inspect as footprint_inspect
from backends.machine.devices import Device
from backends.machine.files.lock_holders import Holder
from backends.scripted import ScriptedEngine
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim import Shim
from shim.config import Config
from shim.keeper.engines import monitor as monitor_module
from shim.keeper.process.device_locks import lock_devices
from shim.placement import budgeted_devices as keeper_devices
from shim.placement.budgeted_devices import BudgetDevices, bookings_of, budget_devices, seat

GIB = 1 << 30
GPUS = [
    Device(f"cuda:{n}", "cuda", 24 * GIB, 20 * GIB, f"GPU-{letter}", "A GPU")
    for n, letter in enumerate("ab")
]
RAM = Device(HOST, "host", 64 * GIB, 50 * GIB, "host-x", "RAM")
REMOTE = [
    Device("RPC0", "rpc", 64 * GIB, 0, "rpc-a:1-0", "RPC a:1", "a:1"),
    Device("RPC1", "rpc", 64 * GIB, 0, "rpc-b:2-0", "RPC b:2", "b:2"),
    Device("RPC2", "rpc", 64 * GIB, 0, "rpc-b:2-1", "RPC b:2", "b:2"),
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 24 GiB, 64 GiB of RAM, and two RPC servers with three devices."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(keeper_devices, "discover", lambda: [RAM, *GPUS])
    monkeypatch.setattr(keeper_devices, "rpc_devices", lambda _servers: tuple(REMOTE))


def budgeted(**budget: Any) -> BudgetDevices:
    """The devices of a `[budget]`."""
    return budget_devices(Config.from_mapping({"budget": budget}))


def test_by_default_all_gpus_are_budgeted() -> None:
    """With the section's limit on each, and the host for what stays on the CPU."""
    found = budgeted(limit="50%", reserve=0)
    assert found.names == ("cuda:0", "cuda:1")
    assert found.limits == {HOST: 64 * GIB, "cuda:0": 12 * GIB, "cuda:1": 12 * GIB}
    assert list(found.layer_limits) == ["cuda:0", "cuda:1"]


def test_gpus_that_are_hidden_from_this_program_are_not_budgeted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`CUDA_VISIBLE_DEVICES` of the keeper counts; what is left keeps its name."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert budgeted().names == ("cuda:1",)
    with pytest.raises(ConfigError, match="'cuda:0'; this machine has cuda:1, host"):
        budgeted(device="cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert budgeted().names == (HOST,)


def test_without_a_gpu_the_host_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has the section's limit itself."""
    monkeypatch.setattr(keeper_devices, "discover", lambda: [RAM])
    found = budgeted(limit="50%")
    assert (found.names, found.limits) == ((HOST,), {HOST: 32 * GIB})
    assert found.layer_limits == {}


def test_devices_have_their_own_limits_and_can_be_named_by_uuid() -> None:
    """In the order of the configuration; the host too can be bounded."""
    found = budgeted(
        devices=[
            {"device": "GPU-b", "limit": "8GiB"},
            {"device": "cuda:0", "reserve": "6GiB"},
            {"device": "host", "limit": "10GiB"},
        ],
        limit="100%",
    )
    assert found.names == ("cuda:1", "cuda:0")
    assert found.limits == {"cuda:1": 8 * GIB, "cuda:0": 18 * GIB, HOST: 10 * GIB}
    assert found.reserves["cuda:0"] == 6 * GIB


def test_a_device_that_is_not_there_or_there_twice_is_said() -> None:
    """Before anything starts, with those that are there."""
    with pytest.raises(ConfigError, match=r"devices has 'cuda:2'; this machine has cuda:0, cuda:1"):
        budgeted(devices=["cuda:0", "cuda:2"])
    with pytest.raises(ConfigError, match="cuda:0 twice, once by its UUID GPU-a"):
        budgeted(devices=["cuda:0", "GPU-a"])
    with pytest.raises(ConfigError, match="'RPC3'"):
        budgeted(devices=["RPC0", "RPC3"], rpc=["a:1", "b:2"], limit="1GiB")


def test_the_books_have_one_connection_for_each_rpc_server() -> None:
    """A server with two devices still serves one client; one that is not budgeted has no seat."""
    found = budgeted(devices=["RPC0", "RPC2"], rpc=["a:1", "b:2"], limit="1GiB")
    assert found.servers() == ("a:1", "b:2", "b:2")
    assert found.pools == {**found.limits, seat("a:1"): 1, seat("b:2"): 1}
    assert budgeted(device="RPC0", rpc=["a:1", "b:2"], limit="1GiB").servers() == ("a:1",)
    args = EngineArgs(512, rpc=("", "b:2", "b:2"), devices=("RPC1", "RPC2"), tensor_split=(2, 3))
    placed = Placement(args, {d: Footprint(7) for d in ("RPC1", "RPC2")}, "dry-run")
    assert bookings_of(placed) == (("RPC1", 7), ("RPC2", 7), (seat("b:2"), 1))


def test_servers_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again at a reload: an engine may be connected, and they serve one client."""
    asked: list[tuple[str, ...]] = []

    def ask(servers: tuple[str, ...]) -> tuple[Device, ...]:
        asked.append(servers)
        return tuple(REMOTE)

    monkeypatch.setattr(keeper_devices, "rpc_devices", ask)
    config = Config.from_mapping(
        {"budget": {"devices": ["RPC0", "RPC1"], "rpc": ["a:1", "b:2"], "limit": "1GiB"}}
    )
    first = budget_devices(config)
    assert budget_devices(config, first).limits == first.limits
    assert asked == [("a:1", "b:2")]


def test_a_second_keeper_may_not_book_any_of_the_devices(tmp_path: Path) -> None:
    """All of them are locked by their UUIDs, or none."""
    uuids = [device.uuid for device in budgeted().devices]
    note = Holder.this_process(tmp_path)
    with (
        lock_devices(tmp_path, uuids, note),
        pytest.raises(ConfigError, match="GPU-b is booked by another keeper"),
    ):
        lock_devices(tmp_path, [uuids[1]], note)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, split_model: Path) -> Iterator[Shim]:
    """Four models of one size over scripted engines; each GPU holds two of them."""
    monkeypatch.setattr(footprint_inspect, "dry_run_available", lambda: False)
    monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: 1 << 50)
    entry = {"path": str(split_model), "context": 512}
    # Different numbers of slots: engines of their own, on one file.
    models = {name: {**entry, "slots": n} for n, name in enumerate("abcd", start=1)}
    limit = 2 * (512 << 20) + 100_000_000
    budget = {"limit": limit, "reserve": 0}

    def scripted(entry: Any, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime)

    with Shim({"budget": budget, "models": models}, factory=scripted) as shim:
        yield shim


@pytest.fixture
def split_model(tiny_models: dict[str, Path]) -> Path:
    """A small file."""
    return tiny_models["classifier"]


def test_four_models_lie_two_on_each_gpu(two_gpus: Shim) -> None:
    """No engine is evicted for another, and every device's books equal those of its engines."""
    for name in "abcd":
        two_gpus.load(name)
    status = two_gpus.status()
    assert not any(record["victims"] for record in status["decisions"])
    where: dict[str, int] = {}
    for row in status["engines"]:
        (gpu,) = set(row["bytes"]) - {HOST}
        where[gpu] = where.get(gpu, 0) + 1
    assert where == {"cuda:0": 2, "cuda:1": 2}
    assert {device["device"] for device in status["devices"]} == {HOST, "cuda:0", "cuda:1"}
    for device in status["devices"]:
        booked = sum(row["bytes"].get(device["device"], 0) for row in status["engines"])
        assert device["reserved_bytes"] == booked
