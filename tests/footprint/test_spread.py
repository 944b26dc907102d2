"""The closed form over several devices, beside llama.cpp's dry run over RPC servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.dry_run import measure_many
from backends.gguf.header import read_header
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs
from budget.memory.closed_form import estimate
from budget.memory.compute import is_exact
from budget.memory.shape import ModelShape
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
    ["llama-3.1-8b", "gemma3-4b", "bge-small", "mamba-130m", "qwen3.5-35b-a3b", "gemma4-26b-a4b"],
)
def test_each_device_is_as_llama_cpp_fills_it(
    name: str, servers: tuple[str, ...], tmp_path: Path
) -> None:
    """Every buffer to the byte on every device, at every kind of split."""
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
        assert closed == measured


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


def test_devices_of_other_kinds_are_taken_to_pipeline(tmp_path: Path) -> None:
    """Whether they do is not known: copies for a pipeline are counted, and the figure is no exact one."""
    _, shape = shape_of("llama-2-7b", tmp_path)
    args = replace(ARGS, n_gpu_layers=13, tensor_split=(6, 7))
    others = ("Vulkan0", "Vulkan1")
    found = estimate(shape, args, others)
    cuda = estimate(shape, args, ("cuda:0", "cuda:1"))
    assert found["Vulkan1"].compute_bytes == cuda["cuda:1"].compute_bytes
    assert not is_exact(shape, replace(args, devices=others))
    assert is_exact(shape, args)


def test_a_split_over_several_devices_must_be_given(tmp_path: Path) -> None:
    """Free memory decides nothing."""
    _, llama = shape_of("llama-2-7b", tmp_path)
    with pytest.raises(ConfigError, match="tensor_split"):
        estimate(llama, replace(ARGS, n_gpu_layers=13), BOTH)
