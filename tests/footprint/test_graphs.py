"""Compute buffers by the model's graph: ggml's allocator, the scheduler, every known architecture."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from backends.footprint.dry_run import measure_many
from backends.gguf.header import read_header
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.closed_form import estimate
from budget.memory.graph import architectures
from budget.memory.graph.allocator import reserved_bytes
from budget.memory.graph.layouts import LAYOUTS, representative_layers
from budget.memory.graph.schedule import scheduled
from budget.memory.graph.tensors import (
    HOST as CPU,
)
from budget.memory.graph.tensors import (
    ComputeGraph,
    GraphTensor,
    dims,
    graph_input,
    like,
    made,
    reshape,
    there,
)
from budget.memory.shape import ModelShape
from tests.footprint.drawn import drawn_arguments, variations
from tools.rpc import rpc_server
from tools.shape_layouts import Shape
from tools.shapes import SHAPES, write, write_shape

DEVICE = 0
BOTH = {CPU: 32, DEVICE: 32}
WEIGHT, MOVED = there(CPU, weight=True), there(DEVICE, weight=True)


def row(elements: int, *src: GraphTensor, op: str = "mul_mat") -> GraphTensor:
    """A tensor of that many F32."""
    return made(op, dims(elements), *src)


def test_memory_is_used_again_after_the_last_use() -> None:
    """A chain of products needs room for two of them at a time, wherever they lie."""
    graph = ComputeGraph()
    first = row(100, WEIGHT, graph_input(8, 4))
    graph.expand(row(100, WEIGHT, row(100, WEIGHT, row(100, WEIGHT, first))))
    assert reserved_bytes(graph, BOTH) == {CPU: 2 * 416 + 32, DEVICE: 0}


def test_an_operation_by_element_takes_its_source_s_memory() -> None:
    """If no other node reads it, and it is no view."""
    alone, read_twice, viewed = ComputeGraph(), ComputeGraph(), ComputeGraph()
    alone.expand(like("scale", row(100, WEIGHT)))
    source = row(100, WEIGHT)
    read_twice.expand(like("add", like("scale", source), source))
    viewed.expand(like("scale", reshape(row(100, WEIGHT), 10, 10)))
    assert reserved_bytes(alone, BOTH)[CPU] == 416
    assert reserved_bytes(read_twice, BOTH)[CPU] == 832
    assert reserved_bytes(viewed, BOTH)[CPU] == 832


def test_the_smallest_hole_that_is_large_enough_is_filled() -> None:
    """Two holes are left; the second product goes into the nearer fit, and nothing grows."""
    graph = ComputeGraph()
    small, between, large = row(64, WEIGHT), row(8, WEIGHT), row(256, WEIGHT)
    behind = row(8, WEIGHT)
    for tensor in (small, between, large, behind):
        graph.expand(tensor)
    for source in (small, large):
        graph.expand(row(8, WEIGHT, source))
    graph.expand(row(48, WEIGHT, between, behind))
    assert reserved_bytes(graph, BOTH)[CPU] == 4 * (64 + 8 + 256 + 8) + 32


def test_an_output_is_never_given_back() -> None:
    """What is read after the run stays as it is."""
    graph = ComputeGraph()
    kept = row(100, WEIGHT)
    kept.output = True
    graph.expand(row(100, WEIGHT, row(100, WEIGHT, like("scale", kept))))
    assert reserved_bytes(graph, BOTH)[CPU] == 3 * 416


def test_operations_follow_their_weights_and_activations_are_copied() -> None:
    """What has no weights stays with the device's; its sources are copied there first."""
    graph = ComputeGraph()
    on_host = row(100, WEIGHT)
    moved = like("scale", row(50, MOVED, like("add", on_host, on_host)))
    graph.expand(moved)
    nodes = scheduled(graph)
    assert moved.side == DEVICE
    assert [(node.op, node.side) for node in nodes] == [
        ("mul_mat", CPU), ("", -1), ("", DEVICE), ("add", DEVICE), ("mul_mat", DEVICE),
        ("scale", DEVICE),
    ]  # fmt: skip


def shape_with(name: str, **changes: object) -> Shape:
    """A sparse model of an architecture, of invented dimensions."""
    shape = list(variations(name, random.Random(7), 6))[-1]
    return replace(shape, n_vocab=2000, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An RPC server on loopback: a device without a GPU."""
    with rpc_server() as address:
        yield address


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_buffer_is_the_dry_run_s_to_the_byte(
    name: str, tmp_path: Path, endpoint: str
) -> None:
    """Any split, context, slots, micro-batch, cache type and kind of attention, on both sides; also for
    engines that embed."""  # noqa: D205, D209
    path = write(shape_with(name), tmp_path)
    shape = read_header(path).shape()
    many = list(drawn_arguments(shape, endpoint, random.Random(3)))[::3]
    assert {a.n_gpu_layers for a in many} >= {0, 1, shape.n_layers + 1}
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        closed = estimate(shape, args, ["RPC0"])
        for device in (HOST, "RPC0"):
            assert closed[device] == run.devices.get(device, Footprint()), args


@pytest.mark.real
@pytest.mark.parametrize("pooling", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", ["bert", "qwen3", "lfm2"])
def test_what_is_pooled_is_counted(name: str, pooling: int, tmp_path: Path) -> None:
    """None, mean, first, last, and a rank: after logits where the architecture makes them then too."""
    base = shape_with(name)
    path = write(replace(base, extra={**base.extra, "pooling_type": pooling}), tmp_path)
    shape = read_header(path).shape()
    many = [EngineArgs(1024, n, n_ubatch=256, embeddings=True, devices=(HOST,)) for n in (1, 4)]
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        assert estimate(shape, args, [])[HOST] == run.devices[HOST]


@pytest.mark.real
def test_latent_attention_of_older_files_is_unfolded(tmp_path: Path, endpoint: str) -> None:
    """Files without the absorbed matrices: keys and values of every head are cached."""
    base = shape_with("deepseek2")
    extra = {k: v for k, v in base.extra.items() if not k.endswith("_mla")}
    extra |= {
        "attention.key_length": 192,
        "attention.value_length": 128,
        "rope.dimension_count": 64,
    }
    heads = base.heads
    path = write(replace(base, kv_heads=heads, head_dim=0, extra=extra), tmp_path)
    shape = read_header(path).shape()
    assert not shape.is_mla
    many = list(drawn_arguments(shape, endpoint, random.Random(5)))[::4]
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        closed = estimate(shape, args, ["RPC0"])
        for device in (HOST, "RPC0"):
            assert closed[device] == run.devices.get(device, Footprint()), args


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_layers_that_are_left_out_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the named models, on one device and over two: with all layers the buffers are the same."""
    shape = read_header(write_shape(name, tmp_path / "m.gguf", n_vocab=4000)).shape()
    whole = shape.n_layers + 1
    base = EngineArgs(512, n_ubatch=256, embeddings=not shape.causal, devices=("RPC0",))
    counts = (0, whole // 3, whole // 2, whole)
    many = [replace(base, n_gpu_layers=k) for k in counts]
    both = replace(base, devices=("RPC0", "RPC1"))
    many += [
        replace(both, n_gpu_layers=k, tensor_split=(k // 2, k - k // 2))
        for k in (whole // 2, whole)
    ]
    few = [reserved(shape, args) for args in many]
    monkeypatch.setattr(
        architectures, "representative_layers", lambda _, sides: [*range(len(sides))]
    )
    assert [reserved(shape, args) for args in many] == few


def reserved(shape: ModelShape, args: EngineArgs) -> dict[int, int]:
    """Bytes by side."""
    graph = architectures.graph_of(shape, args)
    return reserved_bytes(graph, {CPU: 32, 0: 32, 1: 32})


def test_layers_that_repeat_are_left_out_by_whole_periods(tmp_path: Path) -> None:
    """Both ends of each side stay, and with them where windows and dense layers fall."""
    shape = shape_with("gemma3", n_layers=40, extra={"attention.sliding_window": 512})
    read = read_header(write(shape, tmp_path)).shape()
    kept = representative_layers(read, [CPU] * 25 + [DEVICE] * 15)
    windows = [read.window_layers[layer] for layer in kept]
    assert len(kept) < 40
    assert {0, 24, 25, 39} <= set(kept)
    gaps = [later - sooner for sooner, later in pairwise(kept)]
    assert all(gap % 6 == 1 for gap in gaps)
    assert windows.count(False) >= 4


def test_layers_are_left_out_in_pairs(tmp_path: Path) -> None:
    """Two layers alike may take turns with the holes that they leave, so that one is not like the next."""
    read = read_header(write(shape_with("llama", n_layers=21), tmp_path)).shape()
    kept = representative_layers(read, [CPU] * 21)
    assert len(kept) < 21
    assert len(kept) % 2 == 21 % 2
