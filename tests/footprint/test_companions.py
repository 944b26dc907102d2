"""Files beside a model: projectors, draft models and adapters are counted where they are put."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.companion_files import projector_estimate
from backends.footprint.dry_run import measure_projector
from backends.footprint.inspect import Inspector
from backends.gguf.header import read_header
from backends.llama.args import LaunchSettings, server_argv
from budget.errors import BadModelFile, ConfigError, MeasurementFailed
from budget.footprint import HOST, EngineArgs
from budget.memory.companions import Tower, adapter_footprints
from tests.footprint.support import footprint_of, logged_until_ready
from tools.projector import write_adapter, write_projector
from tools.shape_layouts import Shape
from tools.shapes import write

ARGS = EngineArgs(n_ctx=1024, devices=(HOST,))
BASE = Shape("base", "llama", 4, 512, 4000, 1536, 8, 2)
TARGETS = [
    (f"blk.{layer}.{name}.weight", inputs, outputs)
    for layer in range(BASE.n_layers)
    for name, inputs, outputs in (("attn_q", 512, 512), ("ffn_down", 1536, 512))
]
LORA_LINE = re.compile(r"LoRA buffer size =\s+([\d.]+) MiB")


@pytest.mark.real
@pytest.mark.parametrize(
    ("dims", "flash"),
    [
        ({}, "on"),
        ({}, "off"),
        ({"image_size": 448}, "on"),
        ({"n_embd": 768, "n_ff": 3072, "heads": 12, "image_size": 448}, "off"),
        ({"n_ff": 1152}, "on"),
    ],
)
def test_a_projectors_closed_form_is_never_below_llama_cpps_figure(
    dims: dict[str, int], flash: str, tmp_path: Path
) -> None:
    """Weights to the byte; the compute buffer is bounded from above, within two and a half times."""
    path = str(write_projector(tmp_path / "mmproj.gguf", **dims))
    args = replace(ARGS, flash_attention=flash)  # type: ignore[arg-type]
    closed = projector_estimate(path, args)[HOST]
    compute_bytes = measure_projector(path, args)[HOST] - closed.weights_bytes
    assert compute_bytes <= closed.compute_bytes <= 2.5 * compute_bytes


@pytest.mark.real
def test_a_projector_is_added_to_its_model_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sources count it; the dry run's figure is kept on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = write(BASE, tmp_path)
    path = write_projector(tmp_path / "mmproj.gguf", image_size=448)
    weights = sum(tensor.n_bytes for tensor in read_header(path).tensors)
    for source in ("closed-form", "dry-run"):
        alone = footprint_of(model, ARGS, source=source).footprints[HOST]
        with_it = footprint_of(model, replace(ARGS, mmproj=str(path)), source=source)
        assert with_it.footprints[HOST].weights_bytes - alone.weights_bytes == weights
        assert with_it.footprints[HOST].compute_bytes > alone.compute_bytes
    assert len(list((tmp_path / "keepwarm" / "footprints").iterdir())) == 3


def test_a_projector_without_a_fixed_image_size_is_not_guessed(tmp_path: Path) -> None:
    """A model is no projector, and what scales with the image is left to the dry run."""
    with pytest.raises(MeasurementFailed, match="no closed form for the projector"):
        projector_estimate(str(write(BASE, tmp_path)), ARGS)


@pytest.mark.real
def test_a_file_that_is_no_projector_is_refused_by_llama_cpp(tmp_path: Path) -> None:
    """The caller gets a typed error, not a crash."""
    with pytest.raises((BadModelFile, MeasurementFailed)):
        measure_projector(write(BASE, tmp_path), ARGS)


def test_more_of_a_tower_takes_more() -> None:
    """Patches, width and scores each count."""
    small = Tower(448, 14, 768, 3072, 12)
    assert small.compute_bytes(flash=True) < small.compute_bytes(flash=False)
    large = Tower(896, 14, 768, 3072, 12)
    assert large.compute_bytes(flash=True) == 4 * small.compute_bytes(flash=True)


@pytest.mark.parametrize("source", ["closed-form", "dry-run"])
@pytest.mark.real
def test_a_draft_model_is_added_with_its_own_context(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights to the byte and an F16 cache, whatever the target's KV type is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = write(BASE, tmp_path)
    draft = write(replace(BASE, name="draft", n_layers=2), tmp_path)
    args = replace(ARGS, kv_type_k="q8_0", kv_type_v="q8_0")
    alone = footprint_of(model, args, source=source).footprints[HOST]  # type: ignore[arg-type]
    both = footprint_of(model, replace(args, draft_model=str(draft)), source=source)  # type: ignore[arg-type]
    own = footprint_of(draft, ARGS, source=source).footprints[HOST]  # type: ignore[arg-type]
    total = both.footprints[HOST]
    assert total.weights_bytes == alone.weights_bytes + own.weights_bytes
    assert total.kv_bytes == alone.kv_bytes + own.kv_bytes
    assert total.compute_bytes >= alone.compute_bytes + own.compute_bytes


@pytest.mark.real
def test_an_adapter_takes_what_a_real_engine_logs(tmp_path: Path, runtime_dir: Path) -> None:
    """Its tensors as they are loaded, to the log's two decimals."""
    model = write(BASE, tmp_path)
    path = write_adapter(tmp_path / "lora.gguf", "llama", TARGETS)
    args = replace(ARGS, lora=(str(path),))
    logged = sum(
        float(match[1])
        for line in logged_until_ready(model, args, runtime_dir)
        if (match := LORA_LINE.search(line))
    )
    alone = footprint_of(model, ARGS, source="closed-form").footprints[HOST]
    with_it = footprint_of(model, args, source="closed-form").footprints[HOST]
    added = with_it.weights_bytes - alone.weights_bytes
    assert added / (1 << 20) == pytest.approx(logged, abs=0.011)


def test_an_adapter_is_split_as_its_model_is(tmp_path: Path) -> None:
    """Each layer's tensors go with the layer; nothing is lost."""
    shape = read_header(write(BASE, tmp_path)).shape()
    tensors = read_header(write_adapter(tmp_path / "l.gguf", "llama", TARGETS)).tensors
    whole = sum(tensor.n_bytes for tensor in tensors)
    for layers in range(shape.n_layers + 2):
        args = replace(ARGS, n_gpu_layers=layers, devices=("RPC0",))
        parts = adapter_footprints(tensors, shape, args)
        moved = max(layers - 1, 0) * whole // shape.n_layers
        found = parts[HOST].weights_bytes, parts["RPC0"].weights_bytes
        assert found == (whole - moved, moved)
    every = shape.n_layers + 1
    both = replace(ARGS, n_gpu_layers=every, devices=("RPC0", "RPC1"), tensor_split=(1, every - 1))
    parts = adapter_footprints(tensors, shape, both)
    one = whole // shape.n_layers
    assert [parts[d].weights_bytes for d in (HOST, *both.devices)] == [0, one, whole - one]


def test_an_adapter_for_another_architecture_is_refused(tmp_path: Path) -> None:
    """llama.cpp would end; the error names both."""
    path = write_adapter(tmp_path / "l.gguf", "qwen2", TARGETS)
    header = read_header(write(BASE, tmp_path))
    asked = Inspector(FootprintCache(tmp_path))
    with pytest.raises(ConfigError, match="adapter for 'llama'"):
        asked.placement(header, replace(ARGS, lora=(str(path),)), HOST, "closed-form")


@pytest.mark.real
def test_mapped_weights_that_are_repacked_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's pages stay beside the copies: both sources say the same, and more than unmapped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = write(replace(BASE, matrix="Q4_0"), tmp_path)
    found = {}
    for source in ("closed-form", "dry-run"):
        for use_mmap in (False, True):
            args = replace(ARGS, use_mmap=use_mmap)
            placement = footprint_of(model, args, source=source)
            found[source, use_mmap] = placement.footprints[HOST].weights_bytes
    assert found["closed-form", True] == found["dry-run", True]
    assert found["closed-form", True] > 1.2 * found["closed-form", False]


def test_a_projector_stays_on_the_cpu_with_its_model() -> None:
    """It is booked on the host, so no GPU takes it; beside layers on a GPU it may go there."""
    settings = LaunchSettings(Path("m.gguf"), "m", Path("s.sock"), Path("slots"), 1, 1)
    args = replace(ARGS, mmproj="p.gguf", devices=(HOST,))
    on_host = server_argv(Path("llama-server"), args, settings)
    assert on_host[on_host.index("--mmproj") :][:3] == [
        "--mmproj",
        "p.gguf",
        "--no-mmproj-offload",
    ]
    on_gpu = server_argv(Path("llama-server"), replace(args, devices=("cuda:0",)), settings)
    assert "--mmproj" in on_gpu
    assert "--no-mmproj-offload" not in on_gpu
    none = server_argv(Path("llama-server"), replace(args, mmproj=None), settings)
    assert "--no-mmproj-offload" not in none
