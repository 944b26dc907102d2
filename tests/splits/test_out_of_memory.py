"""A device that really refuses bytes: both shapes of it, one retry, and then a typed failure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from budget.errors import LoadFailed, OutOfMemory
from shim.keeper.catalog.catalog import build_catalog
from tests.splits.conftest import ALL_LAYERS, OpenSplit, Split
from tests.splits.support import idle_bytes, rpc_server

pytestmark = pytest.mark.real

MIB = 1 << 20
ASK: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}


@pytest.fixture(scope="module")
def idle() -> int:
    """What an RPC server takes by itself."""
    return idle_bytes()


def failed_loads(caplog: pytest.LogCaptureFixture) -> list[str]:
    """How each load that failed ended, in order."""
    lines = [r.getMessage() for r in caplog.records if "failed: " in r.getMessage()]
    return ["abort" if "abort" in line else "exit" for line in lines]


def check_failed(opened: Split, error: OutOfMemory) -> None:
    """The error is typed and names the device, and nothing is booked for what is not there."""
    assert error.facts["device"] == "RPC0"
    assert error.facts["log_tail"]
    assert set(opened.reserved().values()) == {0}
    row = opened.engine("m")
    assert (row["state"], row["generation"], row["bytes"]) == ("failed", 2, {})


def test_a_clean_refusal_is_tried_once_more_with_fewer_layers(
    split_models: dict[str, Path], idle: int, split: OpenSplit, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets an answer; the books hold the smaller placement."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    # The KV cache of all layers takes 64 MiB of the device, that of one layer 16.
    model = {"path": str(split_models["F16"]), "context": 32768, "slots": 4}
    with rpc_server(idle + 45 * MIB) as server:
        opened = split(server, {"m": model})
        placements = build_catalog(opened.shim.config).prepared["m"].placements
        assert opened.shim.chat("m", "Hello.", **ASK).residency.cold
        row = opened.engine("m")
        assert failed_loads(caplog) == ["exit"]
        assert row["option_index"] == 1
        assert row["bytes"] == dict(placements[1].bookings)
        assert placements[1].args.n_gpu_layers == ALL_LAYERS // 2


def test_a_transfer_that_fails_in_mid_load_is_out_of_memory_too(
    split_models: dict[str, Path], idle: int, split: OpenSplit, caplog: pytest.LogCaptureFixture
) -> None:
    """The RPC server has room for all weights, not for the largest tensor's transfer beside them."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    model = {"path": str(split_models["F16"]), "context": 256}
    with rpc_server(idle + 10 * MIB + MIB // 2) as server:
        opened = split(server, {"m": model})
        assert opened.shim.chat("m", "Hello.", **ASK).residency.cold
        assert failed_loads(caplog) == ["abort"]
        assert opened.engine("m")["option_index"] == 1


def test_a_second_refusal_is_a_typed_failure_and_the_books_balance(
    split_models: dict[str, Path], idle: int, split: OpenSplit, caplog: pytest.LogCaptureFixture
) -> None:
    """First the buffer is refused, then, with fewer layers, the transfer: both shapes in a row."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    model = {"path": str(split_models["F16"]), "context": 256}
    with rpc_server(idle + 7 * MIB) as server:
        opened = split(server, {"m": model})
        with pytest.raises(OutOfMemory) as caught:
            opened.shim.chat("m", "Hello.", **ASK)
        assert failed_loads(caplog) == ["exit", "abort"]
        check_failed(opened, caught.value)


def test_a_number_of_layers_that_was_asked_for_is_not_changed(
    split_models: dict[str, Path], idle: int, split: OpenSplit
) -> None:
    """An explicit n_gpu_layers fails when the device refuses it; nothing else is tried."""
    model = {"path": str(split_models["F16"]), "context": 256, "n_gpu_layers": ALL_LAYERS}
    with rpc_server(idle + 5 * MIB) as server:
        opened = split(server, {"m": model})
        with pytest.raises(OutOfMemory):
            opened.shim.chat("m", "Hello.", **ASK)
        row = opened.engine("m")
        assert (row["state"], row["generation"]) == ("failed", 1)
        assert set(opened.reserved().values()) == {0}


def test_a_device_that_is_gone_is_not_out_of_memory(
    split_models: dict[str, Path], split: OpenSplit
) -> None:
    """The RPC server ended after the keeper had seen it: the load fails, as what it is."""
    model = {"path": str(split_models["F16"]), "context": 256}
    with rpc_server() as server:
        opened = split(server, {"m": model})
        opened.shim.status()
    with pytest.raises(LoadFailed) as caught:
        opened.shim.chat("m", "Hello.", **ASK)
    assert not isinstance(caught.value, OutOfMemory)
    assert set(opened.reserved().values()) == {0}
