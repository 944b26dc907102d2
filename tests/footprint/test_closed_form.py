"""The closed form against llama.cpp's dry run, and what holds for any shape."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.footprint.dry_run import measure, measure_many
from backends.gguf.header import read_header
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.arguments import check_args, effective
from budget.memory.closed_form import estimate, estimate_by_layers
from budget.memory.graph import LAYOUTS
from budget.memory.shape import ModelShape
from tests.footprint.drawn import variations
from tools.rpc import rpc_server
from tools.shape_layouts import Shape
from tools.shapes import SHAPES, quantized, write

ARGS = EngineArgs(n_ctx=2048, devices=(HOST,))
KNOWN = [
    pytest.param(
        name, marks=[pytest.mark.full] if shape.n_embd > 2048 or shape.n_layers > 40 else []
    )
    for name, shape in sorted(SHAPES.items())
]
VARIANTS = [
    ARGS,
    replace(ARGS, n_ctx=8192, slots=4, n_ubatch=64),
    replace(ARGS, kv_type_k="q8_0", kv_type_v="q4_0"),
    replace(ARGS, flash_attention="off", slots=2, kv_unified=True),
    replace(ARGS, n_ctx=300),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sparse files go."""
    return tmp_path_factory.mktemp("shapes")


def shape_of(name: str, folder: Path, matrix: str = "F16") -> tuple[Path, ModelShape]:
    """The sparse file of a named shape, its vocabulary cut down: writing one takes seconds."""
    shape = SHAPES[name]
    small = replace(shape, n_vocab=min(shape.n_vocab, 32_000))
    path = write(quantized(small, matrix), folder)
    return path, read_header(path).shape()


def fitting(many: list[EngineArgs], shape: ModelShape) -> list[EngineArgs]:
    """The arguments as this model allows them: its context, its heads; an encoder embeds."""
    found = []
    for args in many:
        longest = shape.context_length * args.slots
        mine = replace(args, n_ctx=min(args.n_ctx, longest), embeddings=not shape.causal)
        with contextlib.suppress(ConfigError):
            check_args(mine, shape)
            found.append(mine)
    assert found
    return found


@pytest.mark.real
@pytest.mark.parametrize("name", KNOWN)
def test_named_shapes_are_the_dry_run_s_to_the_byte(name: str, folder: Path) -> None:
    """Weights, KV cache and compute buffer, over contexts, slots and KV types."""
    path, shape = shape_of(name, folder)
    many = fitting(VARIANTS[:3], shape)
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        assert estimate(shape, args, [])[HOST] == run.devices[HOST]


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "gemma3-4b", "smollm2-135m"])
def test_an_embedding_decoder_has_a_row_of_logits_for_every_token(name: str, folder: Path) -> None:
    """Its largest buffer is that of the logits."""
    path, shape = shape_of(name, folder, "Q8_0")
    many = [replace(ARGS, embeddings=True, n_ubatch=n, slots=4) for n in (64, 512)]
    for args, run in zip(many, measure_many(path, many), strict=True):
        assert run is not None
        assert estimate(shape, args, [])[HOST] == run.devices[HOST]


@pytest.mark.real
@pytest.mark.parametrize("matrix", ["Q8_0", "Q4_0", "Q4_K_M"])
@pytest.mark.parametrize("repack", [True, False])
def test_repacked_and_tied_weights_are_counted_as_llama_cpp_holds_them(
    matrix: str, repack: bool, folder: Path
) -> None:
    """A tied embedding is held twice when the output's copy is repacked."""
    tied = Shape("tied", "llama", 4, 512, 8192, 1536, 8, 2, tied=True, matrix=matrix)
    path = write(tied, folder)
    args = replace(ARGS, repack=repack)
    closed = estimate(read_header(path).shape(), args, [])[HOST]
    assert closed == measure(path, args).devices[HOST]


@st.composite
def drawn_shapes(draw: st.DrawFn) -> Shape:
    """Random shapes of any known architecture: any heads, widths, experts, windows."""
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    rng = random.Random(draw(st.integers(0, 10_000)))
    shape = list(variations(name, rng, 8))[-1]
    matrix = draw(st.sampled_from(["F16", "Q8_0", "Q4_0", "Q4_K_M"]))
    return replace(shape, n_vocab=draw(st.sampled_from([1000, 4000])), matrix=matrix)


DRAWN = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An RPC server on loopback: a device without a GPU."""
    with rpc_server() as address:
        yield address


def check_drawn(shape: Shape, variant: EngineArgs, part: float, folder: Path, rpc: str) -> None:
    """Weights, state and compute buffers to the byte on each side."""
    path = write(shape, folder)
    read = read_header(path).shape()
    layers = round(part * (read.n_layers + 1))
    args = replace(fitting([variant], read)[0], n_gpu_layers=layers, rpc=(rpc,), devices=("RPC0",))
    closed = estimate(read, args, ["RPC0"])
    measured = measure(path, args).devices
    path.unlink()
    for device in (HOST, "RPC0"):
        assert closed[device] == measured.get(device, Footprint())


@pytest.mark.real
@settings(DRAWN, max_examples=18)
@given(
    shape=drawn_shapes(),
    variant=st.sampled_from([VARIANTS[0], VARIANTS[1], VARIANTS[4]]),
    part=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_drawn_shapes_are_exact_on_each_side(
    shape: Shape, variant: EngineArgs, part: float, folder: Path, endpoint: str
) -> None:
    """Random shapes, on a device and the host."""
    check_drawn(shape, variant, part, folder, endpoint)


@pytest.mark.real
@pytest.mark.full
@settings(DRAWN, max_examples=300)
@given(
    shape=drawn_shapes(),
    variant=st.sampled_from([VARIANTS[0], VARIANTS[1], VARIANTS[4]]),
    part=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_many_drawn_shapes_are_exact_on_each_side(
    shape: Shape, variant: EngineArgs, part: float, folder: Path, endpoint: str
) -> None:
    """The same, with hundreds of shapes."""
    check_drawn(shape, variant, part, folder, endpoint)


@settings(DRAWN, max_examples=30)
@given(shape=drawn_shapes(), variant=st.sampled_from(VARIANTS[:2]))
def test_every_split_holds_the_whole_model(shape: Shape, variant: EngineArgs, folder: Path) -> None:
    """Layers move one by one from host to device; nothing is lost, and one form agrees with all."""
    read = read_header(write(shape, folder)).shape()
    args = fitting([variant], read)[0]
    both = estimate_by_layers(read, args, "RPC0")
    assert len(both.host.weights) == read.n_layers + 2
    assert (np.diff(both.host.weights) <= 0).all()
    assert (np.diff(both.device.weights) >= 0).all()
    assert (both.host.kv + both.device.kv == both.host.kv[0]).all()
    assert both.device.weights[0] == both.device.kv[0] == both.device.compute[0] == 0
    for layers in (0, 2, read.n_layers + 1):
        one = estimate(read, replace(args, n_gpu_layers=layers), ["RPC0"])
        assert one == {HOST: both.host.at(layers), "RPC0": both.device.at(layers)}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_plan_s_compute_buffers_are_never_low(name: str, folder: Path) -> None:
    """Between the places of the split that are evaluated stands the larger: at every place enough."""
    _, shape = shape_of(name, folder)
    args = replace(ARGS, n_ubatch=256, embeddings=not shape.causal, n_ctx=512)
    both = estimate_by_layers(shape, args, "RPC0")
    for layers in range(0, shape.n_layers + 2, 3):
        one = estimate(shape, replace(args, n_gpu_layers=layers), ["RPC0"])
        assert both.host.compute[layers] >= one[HOST].compute_bytes
        assert both.device.compute[layers] >= one["RPC0"].compute_bytes


def test_quantized_rows_are_padded_on_cuda_alone(folder: Path) -> None:
    """Rows of 576 are 64 over 512: CUDA pads each matrix by the rest of a row, an RPC server does not."""
    _, shape = shape_of("smollm2-135m", folder, "Q8_0")
    cuda, rpc = (
        estimate_by_layers(shape, ARGS, name).device.weights[-1] for name in ("cuda:0", "RPC0")
    )
    odd = sum(1 for t in shape.tensors if t.ggml_type == "Q8_0" and t.dims[0] % 512) + 1
    padding_bytes = (512 - 576 % 512) // 32 * 34
    assert odd * (padding_bytes - 128) <= cuda - rpc <= odd * (padding_bytes + 128) + 30_000


def test_latent_attention_has_one_kv_type(folder: Path) -> None:
    """llama.cpp refuses different types for keys and values there."""
    _, shape = shape_of("deepseek2-lite", folder)
    with pytest.raises(ConfigError, match="that of the keys"):
        check_args(replace(ARGS, kv_type_k="q8_0"), shape)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_ctx": 8193}, "trained for 8192"),
        ({"n_gpu_layers": 32}, "0 to 31"),
        ({"n_gpu_layers": -1}, "0 or more"),
        ({"kv_type_k": "Q9"}, "allowed are"),
        ({"slots": 4, "n_ctx": 3}, "each of 4 slots"),
    ],
)
def test_arguments_beyond_the_model_are_refused(
    changes: dict[str, object], words: str, folder: Path
) -> None:
    """What was found and what is allowed, before anything starts."""
    _, shape = shape_of("smollm2-135m", folder)
    with pytest.raises(ConfigError, match=words):
        check_args(replace(ARGS, **changes), shape)  # type: ignore[arg-type]


def test_quantized_kv_must_divide_the_heads(folder: Path) -> None:
    """A head of 80 has no whole q8_0 blocks."""
    odd = Shape("odd", "llama", 2, 320, 1000, 1024, 4, 4)
    shape = read_header(write(odd, folder)).shape()
    with pytest.raises(ConfigError, match="heads of 80"):
        check_args(replace(ARGS, kv_type_k="q8_0"), shape)


def test_contexts_are_padded_as_llama_cpp_pads_them() -> None:
    """To 256 cells in all, and again per slot; batches to the context."""
    sizes = effective(EngineArgs(n_ctx=300, slots=4))
    assert (sizes.n_ctx_seq, sizes.n_ctx, sizes.n_streams) == (256, 1024, 4)
    assert (sizes.n_batch, sizes.n_ubatch, sizes.n_outputs) == (300, 300, 4)
    unified = effective(EngineArgs(n_ctx=300, slots=4, kv_unified=True))
    assert (unified.n_ctx_seq, unified.n_streams) == (512, 1)
