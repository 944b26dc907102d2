"""Splits and sizes that cannot be: a clear error before any engine starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from backends.llama.rpc.servers import rpc_devices
from shim import ConfigError, Shim
from shim.config import Config
from shim.keeper.catalog.catalog import CatalogEngine
from shim.placement.budgeted_devices import budget_devices
from tests.splits.conftest import ALL_LAYERS
from tests.splits.support import RpcServer
from tools.rpc import free_port

LIMIT = "1GiB"


def no_engine(_entry: CatalogEngine, _runtime: Path) -> NoReturn:
    """An engine factory that must not be called."""
    raise AssertionError("an engine was started")


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"device": "RPC0"}, "no endpoint for device RPC0"),
        ({"device": "RPC0", "rpc": ["h:1"]}, "no limit for device RPC0"),
        ({"device": "RPC0", "rpc": ["h:1"], "limit": "80%"}, "no percentage"),
        ({"rpc": ["h:1"]}, 'endpoints with device "auto"'),
        ({"device": "RPC0", "rpc": "h:1", "limit": LIMIT}, "not a list of endpoints"),
        ({"device": "RPC0", "rpc": [], "limit": LIMIT}, "not a list of endpoints"),
        ({"device": "RPC0", "rpc": ["h"], "limit": LIMIT}, "'h' is not host:port"),
        ({"device": "RPC0", "rpc": ["h:0"], "limit": LIMIT}, "'h:0' is not host:port"),
        ({"device": "RPC0", "rpc": ["h:65536"], "limit": LIMIT}, "'h:65536' is not host:port"),
        ({"device": "RPC0", "rpc": ["a:1,b:2"], "limit": LIMIT}, "is not host:port"),
        ({"device": "RPC0", "rpc": ["h:1", "h:1"], "limit": LIMIT}, "named twice"),
        ({"device": "RPC01", "rpc": ["h:1"], "limit": LIMIT}, "not a device"),
    ],
)
def test_an_impossible_budget_is_a_mistake_of_the_file(budget: dict[str, Any], said: str) -> None:
    """With the key, what was found and what is allowed; no server is asked."""
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({"budget": budget})
    assert said in str(caught.value)


@pytest.mark.real
def test_an_endpoint_that_does_not_answer_is_said_before_anything_starts() -> None:
    """It is named, with what to do; the keeper does not run."""
    endpoint = f"127.0.0.1:{free_port()}"
    budget = {"device": "RPC0", "rpc": [endpoint], "limit": LIMIT}
    with pytest.raises(ConfigError, match=endpoint), Shim({"budget": budget}, inline=True) as shim:
        shim.status()


@pytest.mark.real
def test_an_endpoint_that_says_nothing_does_not_hang_the_start(silent: str) -> None:
    """Something else listens there, or an engine is connected: after the time-out it is said."""
    with pytest.raises(ConfigError, match="no answer after"):
        rpc_devices([silent], timeout_s=0.5)


@pytest.mark.real
def test_a_device_that_the_servers_do_not_have_names_those_that_are_there(rpc: RpcServer) -> None:
    """One server has one device: RPC1 is not there."""
    budget = {"device": "RPC1", "rpc": [rpc.endpoint], "limit": LIMIT}
    with pytest.raises(ConfigError, match=r"this machine has .*RPC0.*host"):
        budget_devices(Config.from_mapping({"budget": budget}))


def test_a_gpu_that_is_not_there_names_the_devices_that_are() -> None:
    """Also before a model is read."""
    with pytest.raises(ConfigError, match=r"this machine has .*host"):
        budget_devices(Config.from_mapping({"budget": {"device": "cuda:99"}}))


@pytest.mark.real
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"n_gpu_layers": ALL_LAYERS + 1}, f"0 to {ALL_LAYERS} are allowed"),
        ({"context": 8193}, "trained for 8192"),
        ({"context": 4 * 8192 + 4, "slots": 4}, "trained for 8192"),
    ],
)
def test_a_model_that_cannot_be_placed_says_why_and_starts_nothing(
    entry: dict[str, Any], said: str, split_models: dict[str, Path], rpc: RpcServer
) -> None:
    """More layers than there are, and contexts beyond the model's."""
    budget = {"device": "RPC0", "rpc": [rpc.endpoint], "limit": LIMIT}
    models = {"m": {"path": str(split_models["F16"]), **entry}}
    with Shim({"budget": budget, "models": models}, factory=no_engine) as shim:
        with pytest.raises(ConfigError, match=said):
            shim.chat("m", "Hello.")
        assert {row["reserved_bytes"] for row in shim.status()["devices"]} == {0}


def test_layers_on_the_host_are_refused(split_models: dict[str, Path]) -> None:
    """There is no GPU to put them on; llama.cpp would ignore them without a word."""
    models = {"m": {"path": str(split_models["F16"]), "context": 512, "n_gpu_layers": 2}}
    with (
        Shim({"budget": {"device": "host"}, "models": models}, factory=no_engine) as shim,
        pytest.raises(ConfigError, match="the device is the host"),
    ):
        shim.chat("m", "Hello.")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kv_type": "q3_k"}, '"q3_k"; allowed'),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash attention"),
        ({"kv_type_v": "q4_0", "flash_attention": "off"}, "needs flash attention"),
        ({"n_gpu_layers": -1}, "not a number of layers"),
        ({"n_gpu_layers": 2.5}, "not a number of layers"),
        ({"context": 3, "slots": 4}, "at least one token a slot"),
        ({"engine_args": ["--rpc", "h:1"]}, "keepwarm decides the placement"),
        ({"engine_args": ["--no-repack"]}, "use repack"),
    ],
)
def test_impossible_sizes_and_types_are_mistakes_of_the_file(
    keys: dict[str, Any], said: str
) -> None:
    """Found without the model's file."""
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({"models": {"m": {"path": "m.gguf", **keys}}})
    assert said in str(caught.value)
