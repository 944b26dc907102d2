"""Sparse files of real models' shapes: llama.cpp accepts them, and their sizes are the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.footprint.dry_run import measure
from backends.gguf import read_header
from budget.footprint import HOST, EngineArgs
from budget.memory.weights import weights_by_layers
from tools.shapes import SHAPES, write_shape


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_llama_cpp_takes_every_shape_and_counts_the_same_weights(tmp_path: Path, name: str) -> None:
    """Every architecture's tensors are those llama.cpp asks for, to the byte."""
    file_type = "MXFP4" if name.startswith("gpt-oss") else "Q4_K_M"
    path = write_shape(name, tmp_path / "s.gguf", file_type=file_type, n_vocab=4096)
    header = read_header(path)
    encoder = "bert" in header.architecture
    run = measure(path, EngineArgs(n_ctx=256, repack=False, embeddings=encoder))
    expected = weights_by_layers(header.shape(), repack=False).host[0]
    assert run.devices[HOST].weights_bytes == expected
    assert run.n_layers == SHAPES[name].n_layers


@pytest.mark.parametrize(
    ("name", "file_type", "gigabytes"),
    [
        ("llama-2-7b", "F16", 13.48),
        ("llama-2-7b", "Q8_0", 7.16),
        ("llama-2-7b", "Q4_K_M", 4.08),
        ("llama-3.1-8b", "F16", 16.06),
        ("llama-3.1-8b", "Q8_0", 8.53),
        ("llama-3.1-8b", "Q4_K_M", 4.91),
    ],
)
def test_files_have_the_size_of_the_published_ones(
    tmp_path: Path, name: str, file_type: str, gigabytes: float
) -> None:
    """The mixes are llama.cpp's, on a few MB of disk."""
    path = write_shape(name, tmp_path / "s.gguf", file_type=file_type)
    header = read_header(path)
    assert header.file_bytes / 1e9 == pytest.approx(gigabytes, abs=0.011)
    assert header.quantization == header.file_type == file_type
    assert path.stat().st_blocks * 512 < 16 << 20


def test_a_vocabulary_is_packed_as_the_gguf_package_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts, integers and floats of a long array are the same bytes, written faster."""
    at_once = write_shape("llama-2-7b", tmp_path / "a.gguf", n_vocab=4096)
    monkeypatch.setattr("tools.shapes._FEW", 1 << 30)
    one_by_one = write_shape("llama-2-7b", tmp_path / "b.gguf", n_vocab=4096)
    assert at_once.stat().st_size == one_by_one.stat().st_size
    with at_once.open("rb") as ours, one_by_one.open("rb") as theirs:
        assert ours.read(1 << 18) == theirs.read(1 << 18)


def test_a_fallback_beside_the_k_type_does_not_hide_it(tmp_path: Path) -> None:
    """Rows of 896 cannot be Q4_K: most weights of that file are Q5_0, and it is a Q4_K_M."""
    header = read_header(write_shape("qwen2.5-0.5b", tmp_path / "s.gguf", n_vocab=4096))
    assert next(iter(header.weights_by_type)) == "Q5_0"
    assert header.quantization == "Q4_K_M"


def test_unusual_numbers_reach_the_shape(tmp_path: Path) -> None:
    """Latent attention, recurrent state and pooling are in the shape, not only in the metadata."""
    mla = read_header(write_shape("deepseek2-lite", tmp_path / "a.gguf", n_vocab=4096)).shape()
    assert mla.is_mla
    assert (mla.kv_lora_rank, mla.head_dim_k_mla, mla.head_dim_v_mla) == (512, 192, 128)
    assert (mla.n_experts, mla.n_experts_used, mla.n_experts_shared) == (64, 6, 2)
    assert mla.n_ff_expert[1] == 1408
    assert mla.n_layers_dense_lead == 1
    mamba = read_header(write_shape("mamba-130m", tmp_path / "b.gguf", n_vocab=4096)).shape()
    assert mamba.recurrent_layers == (True,) * 24
    assert not mamba.has_attention
    assert (mamba.ssm_inner, mamba.ssm_state, mamba.ssm_dt_rank) == (1536, 16, 48)
    hybrid = read_header(write_shape("falcon-h1-0.5b", tmp_path / "c.gguf", n_vocab=4096)).shape()
    assert hybrid.is_recurrent
    assert hybrid.has_attention
    encoder = read_header(write_shape("nomic-embed-1.5", tmp_path / "d.gguf", n_vocab=4096)).shape()
    assert (encoder.causal, encoder.pooling) == (False, "mean")
    oss = read_header(write_shape("gpt-oss-20b", tmp_path / "e.gguf", n_vocab=4096)).shape()
    assert oss.window_layers == (True, False) * 12
    assert oss.sliding_window == 128
