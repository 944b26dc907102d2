"""Placements: what is chosen on each device, from which source, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from os import environ
from pathlib import Path

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import BufferBytes, DryRun
from backends.footprint.inspect import Inspector
from backends.footprint.placing import placements
from backends.footprint.shared_code import SharedCode, code_files
from backends.gguf.header import GgufHeader, read_header
from backends.llama.binaries import find_binary
from budget.errors import ConfigError, NeverFits
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import OverheadModel
from tests.footprint.support import footprint_of
from tools.shape_layouts import Shape
from tools.shapes import write

ARGS = EngineArgs(n_ctx=1024, n_ubatch=128)
NO_OVERHEAD = OverheadModel(0, 0, 0, 0, 0, 0, 0, 0, 0)
LAYER_BYTES = 100


def fake_measure(calls: list[int]) -> Callable[[str, EngineArgs], DryRun]:
    """A llama.cpp where each layer takes 100 bytes on the device and the rest is on the host."""

    def measure(_path: str, args: EngineArgs) -> DryRun:
        calls.append(args.n_gpu_layers)
        rows = [BufferBytes("CPU", HOST, 1000, 0, 0)]
        if args.n_gpu_layers:
            weights = LAYER_BYTES * args.n_gpu_layers
            rows.append(BufferBytes("RPC0[x]", args.devices[0], weights, 0, 0))
        return DryRun(tuple(rows), 0, 0, 8, args.n_ctx, 0.0)

    return measure


def four_layers(folder: Path) -> GgufHeader:
    """The header of a sparse model of four layers."""
    return read_header(write(Shape("four", "llama", 4, 256, 1000, 1024, 4, 4), folder))


def inspector(folder: Path, calls: list[int]) -> Inspector:
    """One that asks the fake llama.cpp."""
    return Inspector(FootprintCache(folder), fake_measure(calls), NO_OVERHEAD, "build")


@pytest.mark.parametrize(
    ("limit_bytes", "chosen"),
    [(10_000, 5), (500, 5), (499, 4), (250, 2), (100, 1), (99, 0)],
)
def test_auto_is_whole_then_the_most_layers_that_fit_then_the_cpu(
    limit_bytes: int, chosen: int, tmp_path: Path
) -> None:
    """Four layers and an output: 5 in all; what follows takes less, and the CPU comes last."""
    header = four_layers(tmp_path)
    found = placements(
        inspector(tmp_path, []), header, ARGS, {"RPC0": limit_bytes}, source="dry-run"
    )
    layers = [placement.args.n_gpu_layers for placement in found]
    assert layers[0] == chosen
    assert layers == sorted(set(layers), reverse=True)
    assert all(p.footprints["RPC0"].total_bytes <= limit_bytes for p in found[:-1])
    assert (layers[-1], found[-1].args.devices) == (0, (HOST,))


def test_an_explicit_number_of_layers_is_honoured_exactly(
    tmp_path: Path,
) -> None:
    """One placement with that number, or NeverFits with the figures."""
    header = four_layers(tmp_path)
    asked = inspector(tmp_path, [])
    (found,) = placements(asked, header, ARGS, {"RPC0": 300}, n_gpu_layers=3, source="dry-run")
    assert found.args.n_gpu_layers == 3
    with pytest.raises(NeverFits) as caught:
        placements(asked, header, ARGS, {"RPC0": 299}, n_gpu_layers=3, source="dry-run")
    assert caught.value.facts["requested_bytes"] == 300
    with pytest.raises(ConfigError, match="n_gpu_layers"):
        placements(asked, header, ARGS, {"RPC0": 10_000}, n_gpu_layers=6, source="dry-run")


def test_the_host_takes_no_layers(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """One placement with 0 layers; asking for some is a mistake that is said."""
    header = read_header(tiny_models["classifier"])
    asked = inspector(tmp_path, [])
    (found,) = placements(asked, header, ARGS, {}, source="dry-run")
    assert (found.args.n_gpu_layers, found.args.devices) == (0, (HOST,))
    with pytest.raises(ConfigError, match="the device is the host"):
        placements(asked, header, ARGS, {}, n_gpu_layers=3)
    with pytest.raises(ConfigError, match="the device is the host"):
        asked.placement(header, replace(ARGS, n_gpu_layers=1), HOST)


def test_a_measurement_is_made_once_for_a_file_and_arguments(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The second look comes from the disk; other arguments are measured again."""
    header = read_header(tiny_models["classifier"])
    calls: list[int] = []
    for _ in range(2):
        inspector(tmp_path, calls).placement(header, ARGS, HOST, "dry-run")
    assert len(calls) == 1
    inspector(tmp_path, calls).placement(header, replace(ARGS, slots=2), HOST, "dry-run")
    assert len(calls) == 2


def test_uncounted_extra_arguments_are_said(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Arguments that the measurement does not know are in the reason, not silently left out."""
    header = read_header(tiny_models["classifier"])
    args = replace(ARGS, extra=("--no-kv-offload",))
    found = inspector(tmp_path, []).placement(header, args, HOST, "dry-run")
    assert "not counted: --no-kv-offload" in found.reason


@pytest.mark.real
def test_both_sources_agree_on_a_real_model(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed form and dry run of the same file, overhead included, within 2% (toys)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for role in ("classifier", "evaluator", "producer"):
        closed = footprint_of(tiny_models[role], ARGS, source="closed-form")
        measured = footprint_of(tiny_models[role], ARGS)
        assert (closed.source, measured.source) == ("closed-form", "dry-run")
        assert closed.total_bytes == pytest.approx(measured.total_bytes, rel=0.02)
        assert measured.footprints[HOST].overhead_bytes > 10_000_000


_MAPS = Path("/proc/self/maps")
NO_LLAMA = (
    "import sys; sys.modules['llama_cpp'] = None\n"
    "import importlib.util as u; u.find_spec = lambda *_: None\n"
    "from backends.footprint.inspect import Inspector\n"
    "from backends.gguf.header import read_header\n"
    "from budget.footprint import EngineArgs\n"
    "header, args = read_header(sys.argv[1]), EngineArgs(n_ctx=512)\n"
    "for source in ('closed-form', 'auto'):\n"
    "    found = Inspector().placement(header, args, 'host', source)\n"
    "    print(found.source, found.reason)\n"
)


@pytest.mark.parametrize("role", ["classifier", "producer", "embedder"])
def test_the_closed_form_needs_no_llama_cpp(
    tiny_models: dict[str, Path], tmp_path: Path, role: str
) -> None:
    """With llama_cpp not importable, `closed-form` answers and `auto` says what it used."""
    done = subprocess.run(
        [sys.executable, "-c", NO_LLAMA, str(tiny_models[role])],
        capture_output=True,
        text=True,
        check=True,
        env={**environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.stdout.splitlines() == ["closed-form ", "closed-form llama.cpp is not installed"]
    assert not (tmp_path / "cache").exists()


def test_the_closed_form_reads_no_cached_measurement(tmp_path: Path) -> None:
    """It answers the same beside a cache full of other figures, and measures nothing."""
    header = four_layers(tmp_path)
    calls: list[int] = []
    asked = inspector(tmp_path, calls)
    before = asked.placement(header, ARGS, HOST, "closed-form")
    asked.placement(header, ARGS, HOST, "dry-run")
    assert len(calls) == 1
    assert asked.placement(header, ARGS, HOST, "closed-form").footprints == before.footprints
    assert len(calls) == 1


def test_an_unconfirmed_or_outdated_figure_says_so(tmp_path: Path) -> None:
    """Figures for CUDA, and graphs of another llama.cpp than the one here."""
    header = four_layers(tmp_path)
    asked = Inspector(FootprintCache(tmp_path), build="9.9.9-abc")
    args = replace(ARGS, n_gpu_layers=2)
    reason = asked.placement(header, args, "cuda:0", "closed-form").reason
    assert "not been confirmed on a GPU" in reason
    assert "9.9.9 is installed" in reason


@pytest.mark.real
def test_an_embedding_engine_is_booked_with_its_largest_output(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output buffer grows to a row of logits and embeddings for each token of a batch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    header = read_header(tiny_models["embedder"])
    shape = header.shape()
    small, large = (
        footprint_of(header.files[0], replace(ARGS, embeddings=True, n_ubatch=n)) for n in (64, 128)
    )
    row_bytes = 4 * (shape.n_vocab + shape.n_embd)
    grown = large.footprints[HOST].compute_bytes - small.footprints[HOST].compute_bytes
    assert grown >= 64 * row_bytes


@pytest.mark.real
def test_the_engines_code_is_held_and_let_go() -> None:
    """The server and its own libraries are mapped, other tools' are not; closing twice is fine."""
    server = find_binary("llama-server")
    names = {path.name for path in code_files(server)}
    assert "llama-server" in names
    assert "libllama-server-impl.so" in names
    assert "libllama-bench-impl.so" not in names
    with SharedCode(server) as code:
        assert "libllama-server-impl.so" in _MAPS.read_text()
    assert "libllama-server-impl.so" not in _MAPS.read_text()
    code.close()


@pytest.mark.parametrize(
    ("matrix", "repack", "mapped"),
    [("Q8_0", True, True), ("F16", True, True), ("Q4_0", True, False), ("Q4_0", False, True)],
)
def test_weights_are_mapped_on_the_host_unless_some_are_repacked(
    matrix: str, repack: bool, mapped: bool, tmp_path: Path
) -> None:
    """Mapping and repacking would hold weights twice; mapping alone loads without a copy."""
    shape = replace(Shape("four", "llama", 4, 256, 1000, 1024, 4, 4), matrix=matrix)
    header = read_header(write(shape, tmp_path))
    args = replace(ARGS, repack=repack)
    (placed,) = placements(inspector(tmp_path, []), header, args, {HOST: 1 << 40})
    assert placed.args.use_mmap is mapped
