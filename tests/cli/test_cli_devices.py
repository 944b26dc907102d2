"""Commands on a budget of two devices: two RPC servers on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.demo.models import TINY_RECIPES, make_model
from tests.cli.support import CommandPlace
from tests.splits.support import rpc_server

pytestmark = pytest.mark.real

MIB = 1 << 20
SMALL = {"context": 512, "threads": 1, "n_batch": 64, "n_ubatch": 64}


def test_every_command_shows_every_device(place: CommandPlace, tmp_path: Path) -> None:
    """`plan` says whole or spread, `inspect` what each device takes, `ps` the books of all of them."""
    file = make_model(TINY_RECIPES[0], tmp_path / "m.gguf")
    with rpc_server() as first, rpc_server() as second:
        servers = [first.endpoint, second.endpoint]
        models = {"m": {"path": str(file), **SMALL}}
        budget: dict[str, Any] = {"rpc": servers, "devices": ["RPC0", "RPC1"], "limit": "1GiB"}
        place.configure(models, budget=budget)
        whole = place.json("plan")
        assert [row["device"] for row in whole["devices"]] == ["RPC0", "RPC1", "host"]
        (row,) = whole["models"]
        assert row["kind"] == "whole"
        place.configure(models, budget={**budget, "limit": int(row["bytes"]["RPC0"] * 0.8)})
        (row,) = place.json("plan")["models"]
        assert (row["kind"], set(row["bytes"])) == ("spread", {"RPC0", "RPC1", "host"})
        assert "spread" in place.run("plan").stdout
        split = row["tensor_split"]
        asked = ["--device", "RPC0", "--device", "RPC1", "--rpc", servers[0], "--rpc", servers[1]]
        asked += ["--tensor-split", ",".join(map(str, split)), "--context", "512"]
        answer = place.json("inspect", str(file), *asked)
        assert (answer["tensor_split"], set(answer["devices"])) == (split, {"RPC0", "RPC1", "host"})
        assert place.run("load", "m").exit_code == 0
        status = place.json("ps")
        assert {d["device"] for d in status["devices"]} == {"RPC0", "RPC1", "host"}
        assert set(place.engine("m")["bytes"]) == {"RPC0", "RPC1", "host"}
        assert place.run("keeper", "stop").exit_code == 0


def test_devices_that_cannot_be_inspected_together_are_refused(
    place: CommandPlace, tiny_models: dict[str, Path]
) -> None:
    """The host is not one of several, and a split has a number for each."""
    file = str(tiny_models["classifier"])
    two = ["--device", "cuda:0", "--device", "cuda:1"]
    assert place.run("inspect", file, "--device", "host", "--device", "cuda:0").exit_code == 2
    assert place.run("inspect", file, *two, "--tensor-split", "3").exit_code == 2
    answer = place.json("inspect", file, *two)
    assert answer["source"] == "closed-form"
    assert len(answer["tensor_split"]) == 2
