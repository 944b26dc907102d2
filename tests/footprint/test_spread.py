"""The closed form over several devices, beside llama.cpp's dry run over RPC servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.dry_run import measure_many
from backends.gguf.header import read_header
from budget.errors import ConfigError, MeasurementFailed
from budget.estimate.closed_form import estimate
from budget.estimate.shape import ModelShape
from budget.footprint import HOST, EngineArgs
from tools.rpc import rpc_server
from tools.shapes import write_shape

BOTH = ("RPC0", "RPC1")
ARGS = EngineArgs(n_ctx=4096, n_ubatch=256, devices=BOTH)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str, str]]:
    """Three RPC servers on loopback."""
    with rpc_server() as first, rpc_server() as second, rpc_server() as third:
        yield first, second, third


def shape_of(name: str, folder: Path, n_layers: int = 12) -> tuple[Path, ModelShape]:
    """A sparse file of a model's shape with fewer layers."""
    path = write_shape(name, folder / f"{name}.gguf", n_layers=n_layers, n_vocab=32000)
    return path, read_header(path).shape()


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["llama-3.1-8b", "qwen2.5-0.5b", "gemma3-4b", "bge-small"],
)
def test_each_device_is_as_llama_cpp_fills_it(
    name: str, servers: tuple[str, ...], tmp_path: Path
) -> None:
    """Weights and KV to the byte on every device, all together within 1%, at every kind of split."""
    path, shape = shape_of(name, tmp_path)
    base = replace(ARGS, rpc=servers[:2], embeddings=not shape.causal, n_ctx=512)
    base = base if not shape.causal else replace(base, n_ctx=4096)
    three = replace(base, rpc=servers, devices=(*BOTH, "RPC2"), n_gpu_layers=13)
    many = [
        replace(base, n_gpu_layers=13, tensor_split=(6, 7)),
        replace(base, n_gpu_layers=13, tensor_split=(10, 3)),
        replace(base, n_gpu_layers=6, tensor_split=(3, 3)),
        replace(base, n_gpu_layers=13, tensor_split=(5, 8), slots=4),
        replace(three, tensor_split=(4, 4, 5)),
    ]
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        closed, measured = estimate(shape, args, args.layer_devices), run.devices
        assert closed.keys() == measured.keys()
        for device, part in measured.items():
            assert closed[device].weights_bytes == part.weights_bytes
            assert closed[device].kv_bytes == part.kv_bytes
        total = sum(part.total_bytes for part in closed.values())
        expected = sum(part.total_bytes for part in measured.values())
        assert total == pytest.approx(expected, rel=0.01)


def test_what_layers_take_does_not_depend_on_how_many_devices_they_are_on(tmp_path: Path) -> None:
    """Weights and KV of all devices together are those of one; only compute buffers are more."""
    _, shape = shape_of("llama-2-7b", tmp_path)
    whole = replace(ARGS, n_gpu_layers=13, devices=("RPC0",))
    one = estimate(shape, whole, ["RPC0"])
    two = estimate(shape, replace(whole, tensor_split=(6, 7)), BOTH)
    for part in ("weights_bytes", "kv_bytes"):
        assert sum(getattr(two[d], part) for d in BOTH) == getattr(one["RPC0"], part)
        assert getattr(two[HOST], part) == getattr(one[HOST], part)
    assert sum(two[d].compute_bytes for d in BOTH) > one["RPC0"].compute_bytes


def test_what_is_not_known_over_several_devices_is_said(tmp_path: Path) -> None:
    """Recurrent layers, other kinds of devices, and a split that is not given: no guess."""
    _, recurrent = shape_of("mamba-130m", tmp_path)
    _, llama = shape_of("llama-2-7b", tmp_path)
    args = replace(ARGS, n_gpu_layers=13, tensor_split=(6, 7))
    with pytest.raises(MeasurementFailed, match="'mamba' over several devices"):
        estimate(recurrent, args, BOTH)
    with pytest.raises(MeasurementFailed, match="Vulkan1"):
        estimate(llama, args, ["RPC0", "Vulkan1"])
    with pytest.raises(ConfigError, match="tensor_split"):
        estimate(llama, replace(args, tensor_split=()), BOTH)
