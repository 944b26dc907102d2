"""Several devices in a configuration: how they are written, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from budget.errors import ConfigError
from shim.config import BudgetSection, Config
from shim.config.schema.device_values import DeviceShare, parse_devices
from shim.config.schema.values import Amount

GIB = 1 << 30
TWO = [{"device": "cuda:0", "limit": "20GiB", "reserve": "1GiB"}, "cuda:1"]


def test_each_device_has_its_own_limit_and_reserve_or_the_sections() -> None:
    """What a device does not say is what `[budget]` says."""
    budget = Config.from_mapping({"budget": {"devices": TWO, "limit": "50%"}}).budget
    first, second = budget.shares
    assert first == DeviceShare("cuda:0", Amount(20 * GIB), Amount(1 * GIB))
    assert budget.limit_bytes(24 * GIB, first) == 20 * GIB
    assert budget.limit_bytes(20 * GIB, first) == 19 * GIB
    assert budget.limit_bytes(24 * GIB, second) == 12 * GIB
    assert budget.reserve_bytes(24 * GIB, first) == 1 * GIB
    assert budget.reserve_bytes(200 * GIB, second) == 2 * GIB


def test_one_device_is_written_as_before() -> None:
    """`device` alone is one share without figures of its own."""
    budget = Config.from_mapping({"budget": {"device": "cuda:1", "limit": "6GiB"}}).budget
    assert budget.shares == (DeviceShare("cuda:1"),)
    assert Config.from_mapping({}).budget.shares == (DeviceShare("auto"),)


def test_devices_survive_the_way_to_the_keeper() -> None:
    """What was given, as JSON, gives the same configuration again."""
    config = Config.from_mapping({"budget": {"devices": TWO}})
    again = Config.from_mapping(config.to_mapping())
    assert again.budget.devices == config.budget.devices
    assert not config.diff(again)
    assert config.to_mapping()["budget"]["devices"][1] == "cuda:1"


def test_devices_of_one_budget_can_be_given_to_another() -> None:
    """A program that changes a limit takes the rest from the configuration that it read."""
    devices = [*TWO, {"device": "RPC0", "limit": "6GiB"}]
    read = Config.from_mapping({"budget": {"devices": devices, "rpc": ["far:50052"]}}).budget
    assert BudgetSection(devices=read.devices, rpc=read.rpc) == read


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cuda:0", "not a list of devices"),
        ([], "not a list of devices"),
        (["auto"], "'auto' is not a device"),
        (["cuda:0", "cuda:0"], '"cuda:0" is named twice'),
        (["cuda:0", {"device": "cuda:0", "limit": "1GiB"}], "named twice"),
        ([{"limit": "1GiB"}], "neither a device nor a table"),
        ([{"device": "cuda:0", "share": 2}], "neither a device nor a table"),
        ([{"device": "cuda:0", "limit": "0B"}], "cuda:0: a limit of zero"),
        ([{"device": "cuda:0", "reserve": "100%"}], "leaves nothing"),
        ([7], "neither a device nor a table"),
    ],
)
def test_a_list_that_makes_no_sense_says_what_is_wrong(value: object, said: str) -> None:
    """With the device, where one is named."""
    with pytest.raises(ValueError, match=said.replace("'", ".")):
        parse_devices(value)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"device": "cuda:0", "devices": ["cuda:1"]}, "device is given too"),
        ({"devices": ["RPC0"], "limit": "1GiB"}, "no endpoint for device RPC0"),
        ({"devices": ["RPC0", "RPC1"], "rpc": ["h:1", "h:2"]}, "no limit for device RPC0"),
        (
            {"devices": [{"device": "RPC0", "limit": "1GiB"}, "RPC1"], "rpc": ["h:1", "h:2"]},
            "no limit for device RPC1",
        ),
        (
            {"devices": [{"device": "RPC0", "limit": "80%"}], "rpc": ["h:1"], "limit": "1GiB"},
            "no percentage",
        ),
        ({"devices": ["cuda:0"], "rpc": ["h:1"]}, 'endpoints with device "cuda:0"'),
    ],
)
def test_keys_of_several_devices_that_contradict_each_other(
    budget: dict[str, Any], said: str
) -> None:
    """A mistake of the file; no server is asked."""
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({"budget": budget})
    assert said in str(caught.value)
