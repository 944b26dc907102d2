"""Which layer goes to which device, the one form of a split, and how layers are divided."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.footprint.shares import Shares, balanced, most_layers
from backends.llama.rpc.device_names import DeviceNames
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from budget.memory.arguments import check_args
from budget.memory.split import device_of_layers, layers_by_device, normal

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
ARGS = EngineArgs(n_ctx=512, n_gpu_layers=5)
SPLITS = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)


def as_llama_does(split: list[int], n_gpu_layers: int, n_layers: int) -> list[int]:
    """`load_tensors` line by line, in single precision; -1 is the host."""
    total = np.float32(0)
    sums = []
    for share in split:
        total = np.float32(total + np.float32(share))
        sums.append(total)
    sums = [np.float32(s / total) for s in sums]
    first = max(n_layers + 1 - n_gpu_layers, 0)
    moved = min(n_gpu_layers, n_layers + 1)
    found = []
    for layer in range(n_layers + 1):
        if layer < first:
            found.append(-1)
            continue
        place = np.float32(np.float32(layer - first) / np.float32(moved))
        found.append(next(i for i, s in enumerate(sums) if s > place))
    return found


@PROPERTY
@given(SPLITS, st.integers(0, 130), st.integers(1, 128))
def test_layers_go_where_llama_cpp_puts_them(
    split: list[int], n_gpu_layers: int, n_layers: int
) -> None:
    """For any shares and any number of layers, also more than there are."""
    found = device_of_layers(split, n_gpu_layers, n_layers)
    assert found.tolist() == as_llama_does(split, n_gpu_layers, n_layers)


@PROPERTY
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_counts_of_layers_are_their_own_shares(counts: list[int]) -> None:
    """In normal form the split says how many layers each device gets, exactly."""
    layers = sum(counts)
    assert layers_by_device(counts, layers, layers + 3) == tuple(counts)
    names = tuple(f"cuda:{number}" for number in range(len(counts)))
    args = replace(ARGS, n_gpu_layers=layers, devices=names, tensor_split=tuple(counts))
    assert normal(args, layers + 3) == args


def test_shares_that_mean_the_same_have_one_form() -> None:
    """Devices without a layer are left out, with their servers; one device has no split."""
    both = replace(ARGS, devices=("RPC0", "RPC1"), rpc=("a:1", "b:2"))
    assert normal(replace(both, tensor_split=(30, 20)), 4).tensor_split == (3, 2)
    second = normal(replace(both, tensor_split=(0, 7)), 4)
    assert (second.devices, second.rpc, second.tensor_split) == (("RPC1",), ("", "b:2"), ())
    first = normal(replace(ARGS, devices=("RPC0",), rpc=("a:1", "b:2")), 4)
    assert first.rpc == ("a:1",)
    assert normal(replace(ARGS, devices=("cuda:0",), rpc=("a:1",)), 4).rpc == ()


@pytest.mark.parametrize(
    ("devices", "split"),
    [
        (("cuda:0", "cuda:1"), ()),
        (("cuda:0", "cuda:1"), (5,)),
        (("cuda:0", "cuda:1"), (0, 0)),
        (("cuda:0", "cuda:1"), (6, -1)),
        (("host",), (5,)),
        (("cuda:0", "cuda:0"), (3, 2)),
    ],
)
def test_a_split_that_says_nothing_clear_is_refused(
    devices: tuple[str, ...], split: tuple[int, ...]
) -> None:
    """Free memory never decides where layers go: a share for each device, or an error."""
    with pytest.raises(ConfigError):
        check_args(replace(ARGS, devices=devices, tensor_split=split))


@PROPERTY
@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=9),
    st.lists(st.integers(1, 300), min_size=2, max_size=3),
)
def test_a_division_fills_devices_alike_and_is_found_where_there_is_one(
    sizes: list[int], room: list[int]
) -> None:
    """Against every possible division: found if and only if one fits, and none is fuller."""
    found = balanced(np.array(sizes, dtype=float), room)
    ends = combinations(range(1, len(sizes)), len(room) - 1)
    fullest = [
        max(
            sum(sizes[a:b]) / amount
            for a, b, amount in zip((0, *cut), (*cut, len(sizes)), room, strict=True)
        )
        for cut in ends
    ]
    best = min(fullest, default=2.0)
    assert (found is not None) == (best <= 1.0)
    if found is not None:
        cuts = np.cumsum((0, *found))
        used = [sum(sizes[a:b]) for a, b in pairwise(cuts)]
        assert (sum(found), min(found) >= 1) == (len(sizes), True)
        assert max(n / r for n, r in zip(used, room, strict=True)) <= best + 1e-6


def test_the_most_layers_are_counted_from_the_last() -> None:
    """The output is big here: it has to fit beside the last layers."""
    shares = Shares(np.array([10.0, 10, 10, 10, 25]), 2)
    assert most_layers(shares, [20, 35]) == 4
    assert most_layers(shares, [20, 24]) == 0
    assert shares.even(5) == (3, 2)


def test_devices_have_llama_cpps_names_by_the_servers_of_the_engine() -> None:
    """An engine that uses the second server alone calls its device RPC0; buffers carry the address."""
    second = DeviceNames(("", "b:2"))
    assert second.llama(("RPC1",)) == ["RPC0"]
    assert second.ours("RPC0") == "RPC1"
    assert second.of_buffer("RPC0[b:2]") == "RPC1"
    both = DeviceNames(("a:1", "b:2", "b:2"))
    assert both.llama(("RPC2", "RPC0")) == ["RPC2", "RPC0"]
    assert [both.of_buffer(f"RPC{n}[b:2]") for n in (0, 1)] == ["RPC1", "RPC2"]
    assert both.of_buffer("RPC0[a:1]") == "RPC0"
    assert [both.of_buffer(n) for n in ("CPU_REPACK", "CUDA_Host", "CUDA1")] == [
        "host",
        "host",
        "cuda:1",
    ]
    assert both.llama(("host",)) == ["none"]
    with pytest.raises(ConfigError, match="RPC3"):
        both.llama(("RPC3",))
