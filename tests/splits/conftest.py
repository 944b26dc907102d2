"""Models of several layers in each quantization, and RPC servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.demo.models import TINY_RECIPES, make_model
from shim import Shim
from tests.splits.support import RpcServer, rpc_server

_FOLDER = Path(__file__).resolve().parents[2] / "models" / "tiny"
N_LAYERS = 4
ALL_LAYERS = N_LAYERS + 1

# Rows of 256 and vocabularies of 8,192: the output layer (4 MiB in F16) is one big transfer.
_BASE = replace(TINY_RECIPES[0], name="split", n_layers=N_LAYERS, n_vocab=8192, seed=5)


@pytest.fixture(scope="session")
def split_models() -> dict[str, Path]:
    """A llama of four layers by quantization, 8 to 13 MB each; made once."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    return {
        kind: make_model(replace(_BASE, quantization=kind), _FOLDER / f"tiny-split-{kind}.gguf")
        for kind in ("F16", "Q8_0", "Q4_K_M", "Q4_0")
    }


@pytest.fixture
def rpc() -> Iterator[RpcServer]:
    """An RPC server with all the memory of this machine."""
    with rpc_server() as server:
        yield server


@dataclass
class Split:
    """A Shim whose models are split over the host and an RPC server."""

    shim: Shim

    def engine(self, model: str) -> dict[str, Any]:
        """The status row of a model's engine."""
        return next(row for row in self.shim.status()["engines"] if model in row["models"])

    def reserved(self) -> dict[str, int]:
        """Booked bytes by device."""
        return {row["device"]: row["reserved_bytes"] for row in self.shim.status()["devices"]}


OpenSplit = Callable[[RpcServer, dict[str, Any]], Split]


@pytest.fixture
def split() -> Iterator[OpenSplit]:
    """Opens Shims on an RPC server, with an inline keeper; closed at the end."""
    opened: list[Shim] = []

    def make(server: RpcServer, models: dict[str, Any], limit: str = "1GiB") -> Split:
        budget = {"device": "RPC0", "rpc": [server.endpoint], "limit": limit}
        shim = Shim({"budget": budget, "models": models}, inline=True)
        opened.append(shim)
        return Split(shim)

    yield make
    for shim in opened:
        shim.close()
