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
from budget.estimate.allocator import reserved_bytes
from budget.estimate.closed_form import estimate
from budget.estimate.ggml_graph import (
    DEVICE,
    Graph,
    Tensor,
    dims,
    graph_input,
    like,
    made,
    reshape,
    there,
)
from budget.estimate.ggml_graph import (
    HOST as CPU,
)
from budget.estimate.graphs import LAYOUTS, graph_of, representative_layers
from budget.estimate.schedule import scheduled
from budget.footprint import HOST, EngineArgs, Footprint
from tools.fit_samples import drawn_arguments, variations
from tools.rpc import rpc_server
from tools.shape_layouts import Shape
from tools.shapes import write

BOTH = {CPU: 32, DEVICE: 32}
WEIGHT, MOVED = there(CPU, weight=True), there(DEVICE, weight=True)


def row(elements: int, *src: Tensor, op: str = "mul_mat") -> Tensor:
    """A tensor of that many F32."""
    return made(op, dims(elements), *src)


def test_memory_is_used_again_after_the_last_use() -> None:
    """A chain of products needs room for two of them at a time, wherever they lie."""
    graph = Graph()
    first = row(100, WEIGHT, graph_input(8, 4))
    graph.expand(row(100, WEIGHT, row(100, WEIGHT, row(100, WEIGHT, first))))
    assert reserved_bytes(graph, BOTH) == {CPU: 2 * 416 + 32, DEVICE: 0}


def test_an_operation_by_element_takes_its_source_s_memory() -> None:
    """If nobody else reads it, and it is no view."""
    alone, read_twice, viewed = Graph(), Graph(), Graph()
    alone.expand(like("scale", row(100, WEIGHT)))
    source = row(100, WEIGHT)
    read_twice.expand(like("add", like("scale", source), source))
    viewed.expand(like("scale", reshape(row(100, WEIGHT), 10, 10)))
    assert reserved_bytes(alone, BOTH)[CPU] == 416
    assert reserved_bytes(read_twice, BOTH)[CPU] == 832
    assert reserved_bytes(viewed, BOTH)[CPU] == 832


def test_the_smallest_hole_that_is_large_enough_is_filled() -> None:
    """Two holes are left; the second product goes into the nearer fit, and nothing grows."""
    graph = Graph()
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
    graph = Graph()
    kept = row(100, WEIGHT)
    kept.output = True
    graph.expand(row(100, WEIGHT, row(100, WEIGHT, like("scale", kept))))
    assert reserved_bytes(graph, BOTH)[CPU] == 3 * 416


def test_operations_follow_their_weights_and_activations_are_copied() -> None:
    """What has no weights stays with the device's; its sources are copied there first."""
    graph = Graph()
    on_host = row(100, WEIGHT)
    moved = like("scale", row(50, MOVED, like("add", on_host, on_host)))
    graph.expand(moved)
    nodes = scheduled(graph)
    assert moved.side == DEVICE
    assert [(node.op, node.side) for node in nodes] == [
        ("mul_mat", CPU), ("", -1), ("", DEVICE), ("add", DEVICE), ("mul_mat", DEVICE),
        ("scale", DEVICE),
    ]  # fmt: skip


def shape_with(folder: Path, name: str, **changes: object) -> Shape:
    """A sparse model of an architecture, nobody's."""
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
    """Any split, context, slots, micro-batch, cache type and kind of attention, on both sides."""
    path = write(shape_with(tmp_path, name), tmp_path)
    shape = read_header(path).shape()
    many = [a for a in drawn_arguments(shape, endpoint, random.Random(3)) if not a.embeddings][::3]
    assert {a.n_gpu_layers for a in many} >= {0, 1, shape.n_layers + 1}
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        closed = estimate(shape, args, ["RPC0"])
        for device in (HOST, "RPC0"):
            assert closed[device] == run.devices.get(device, Footprint()), args


def test_layers_that_repeat_are_left_out_by_whole_periods(tmp_path: Path) -> None:
    """Both ends of each side stay, and with them where windows and dense layers fall."""
    extra = {"attention.sliding_window": 512}
    shape = shape_with(tmp_path, "gemma3", n_layers=40, extra=extra)
    read = read_header(write(shape, tmp_path)).shape()
    kept = representative_layers(read, 25)
    windows = [read.window_layers[layer] for layer in kept]
    assert len(kept) < 40
    assert {0, 24, 25, 39} <= set(kept)
    gaps = [later - sooner for sooner, later in pairwise(kept)]
    assert all(gap % 6 == 1 for gap in gaps)
    assert windows.count(False) >= 4


def test_an_architecture_without_a_graph_is_left_to_the_fit(tmp_path: Path) -> None:
    """Encoders, and decoders that embed: their end depends on how they pool."""
    encoder = read_header(write(shape_with(tmp_path, "bert"), tmp_path)).shape()
    decoder = read_header(write(shape_with(tmp_path, "llama"), tmp_path)).shape()
    assert graph_of(encoder, EngineArgs(512, embeddings=True)) is None
    assert graph_of(decoder, EngineArgs(512, embeddings=True)) is None
    assert graph_of(decoder, EngineArgs(512)) is not None
