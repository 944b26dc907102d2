"""The bound of compute buffers where a graph is not known: never low, and said."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.engine_process.ceiling import Ceilings
from backends.footprint.dry_run import measure_many
from backends.footprint.inspect import Inspector
from backends.footprint.placing import placements
from backends.gguf.header import read_header
from budget.errors import MeasurementFailed
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.closed_form import estimate, estimate_by_layers
from budget.memory.compute import compute_bytes, is_exact, output_bytes
from budget.memory.compute_bound import bound_bytes
from budget.memory.graph import LAYOUTS
from budget.memory.shape import ModelShape
from tests.footprint.drawn import drawn_arguments, variations
from tools.rpc import rpc_server
from tools.shape_layouts import Shape
from tools.shapes import write, write_shape

_STATE = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 2048, "ssm.state_size": 128, "ssm.time_step_rank": 32,
    "ssm.group_count": 1,
}  # fmt: skip
_SCALES = {
    "logit_scale": 8.0, "residual_scale": 0.2, "embedding_scale": 12.0, "attention.scale": 0.01,
}  # fmt: skip
_EXPERTS = {"experts": 16, "experts_used": 4}
UNKNOWN = [
    Shape("granite", "granite", 6, 1024, 4000, 4096, 16, 4, extra=_SCALES),
    Shape("exaone", "exaone", 6, 1280, 4000, 3840, 20, 20, 64),
    Shape("baichuan", "baichuan", 6, 1024, 4000, 2816, 16, 16),
    Shape("refact", "refact", 6, 1024, 4000, 4096, 16, 1),
    Shape("minicpm", "minicpm", 6, 1536, 4000, 3840, 24, 8, tied=True, extra=_SCALES),
    Shape("granitemoe", "granitemoe", 6, 1024, 4000, 512, 16, 8, extra=_SCALES, **_EXPERTS),  # type: ignore[arg-type]
    Shape("qwen2moe", "qwen2moe", 6, 1024, 4000, 2816, 16, 16, qkv_bias=True, n_ff_expert=704,
          **_EXPERTS),  # type: ignore[arg-type]
    Shape("granitehybrid", "granitehybrid", 6, 1024, 4000, 2048, 16, 4, kv_pattern=(0, 0, 4),
          extra=_STATE | _SCALES),
]  # fmt: skip
"""Architectures without a known graph, which llama.cpp can load."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An RPC server on loopback: a device without a GPU."""
    with rpc_server() as address:
        yield address


def read(shape: Shape, folder: Path) -> tuple[Path, ModelShape]:
    """The sparse file of a shape, and what its header says."""
    path = write(replace(shape, context=1 << 20), folder)
    return path, read_header(path).shape()


@pytest.mark.real
@pytest.mark.parametrize("unknown", UNKNOWN, ids=lambda shape: str(shape.name))
def test_what_is_not_known_is_never_low_and_its_other_parts_are_exact(
    unknown: Shape, tmp_path: Path, endpoint: str
) -> None:
    """At every place of the split, with any context, slots, batch, cache type and attention."""
    path, shape = read(unknown, tmp_path)
    assert shape.architecture not in LAYOUTS
    many = list(drawn_arguments(shape, endpoint, random.Random(4)))[::2]
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        closed = estimate(shape, args, ["RPC0"])
        for device in (HOST, "RPC0"):
            mine, theirs = closed[device], run.devices.get(device, Footprint())
            assert mine.weights_bytes == theirs.weights_bytes
            assert mine.kv_bytes == theirs.kv_bytes
            assert mine.compute_bytes >= theirs.compute_bytes, args


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_bound_is_above_every_graph_that_is_known(name: str, tmp_path: Path) -> None:
    """It is meant for others, and these are the ones that it can be held against."""
    rng = random.Random(6)
    for drawn in list(variations(name, rng, 6))[4:]:
        _, shape = read(drawn, tmp_path)
        for args in list(drawn_arguments(shape, "localhost:1", rng))[::5]:
            bound = bound_bytes(shape, args)
            exact = compute_bytes(shape, args)
            exact[HOST] -= output_bytes(shape, args)
            assert all(most >= found for most, found in zip(bound, exact.values(), strict=True))


def test_over_several_devices_every_copy_of_a_pipeline_is_counted(tmp_path: Path) -> None:
    """Each device's buffer stands above that of the graph."""
    shape = read_header(write_shape("llama-3.1-8b", tmp_path / "a.gguf", n_vocab=4096)).shape()
    args = EngineArgs(8192, n_gpu_layers=33, devices=("cuda:0", "cuda:1"), tensor_split=(16, 17))
    bound = bound_bytes(shape, args)
    exact = compute_bytes(shape, args)
    exact[HOST] -= output_bytes(shape, args)
    assert all(most >= found for most, found in zip(bound, exact.values(), strict=True))


def test_a_bound_is_said_to_be_one(tmp_path: Path) -> None:
    """By its source, and by a reason; planning takes it as well."""
    path, shape = read(UNKNOWN[0], tmp_path)
    placement = Inspector().placement(read_header(path), EngineArgs(2048), HOST, "closed-form")
    assert placement.source == "bound"
    assert "compute buffers are a bound" in placement.reason
    assert not is_exact(shape, EngineArgs(2048))
    assert estimate_by_layers(shape, EngineArgs(2048)).device.compute[-1] > 0


def test_where_there_is_no_dry_run_a_bound_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On aarch64, say, a start places a model without a graph by its header alone."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    path, _ = read(UNKNOWN[0], tmp_path)
    inspector = Inspector(build="none")
    found = placements(inspector, read_header(path), EngineArgs(2048), {"RPC0": 1 << 40})
    assert {placement.source for placement in found} == {"bound"}
    assert found[0].args.n_gpu_layers == 7


def test_an_engine_of_a_bound_may_take_as_much_again(tmp_path: Path) -> None:
    """Its ceiling is that of figures that were not measured."""
    path, _ = read(UNKNOWN[0], tmp_path)
    args = EngineArgs(1 << 18)
    placement = Inspector().placement(read_header(path), args, HOST, "closed-form")
    ceiling = Ceilings.of(placement, 1)
    assert ceiling.margin(HOST) == dict(placement.bookings)[HOST]


def test_without_the_rest_of_an_architecture_there_is_no_bound(tmp_path: Path) -> None:
    """Where the cache itself is of a kind that is not known, the answer names the architecture."""
    _, shape = read(UNKNOWN[0], tmp_path)
    other = replace(shape, architecture="deepseek4")
    for ask in (
        lambda: estimate(other, EngineArgs(2048), []),
        lambda: estimate_by_layers(other, EngineArgs(2048)),
    ):
        with pytest.raises(MeasurementFailed, match="'deepseek4'"):
            ask()


def test_cuda_without_flash_attention_for_a_head_is_counted(tmp_path: Path) -> None:
    """With `auto`, heads that CUDA has no kernel for get scores of every cell."""
    odd = Shape("odd", "granite", 2, 1056, 4000, 1024, 8, 8, 132)
    _, shape = read(odd, tmp_path)
    args = EngineArgs(8192, n_gpu_layers=3, devices=("cuda:0",))
    asked = replace(args, flash_attention="on")
    assert bound_bytes(shape, args)[1] > 2 * bound_bytes(shape, asked)[1]
    rpc = replace(args, devices=("RPC0",))
    assert bound_bytes(shape, rpc) == bound_bytes(shape, replace(rpc, flash_attention="on"))
