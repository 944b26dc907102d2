"""Mapped weights are pages of a file: what a device has room for does not count them twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.calibrate import warm_engine
from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from backends.llama.binaries import find_binary
from backends.machine.processes import pss_bytes
from budget.books.room import room_bytes
from budget.footprint import HOST, EngineArgs
from harness.demo.models import TINY_RECIPES, make_model

MIB = 1 << 20


def test_room_is_what_is_free_and_what_is_ours_alone() -> None:
    """Pages of files are free already; a figure that says more of them than is taken adds nothing."""
    assert room_bytes(free=100, taken=50, cached=0, reserve=10) == 140
    assert room_bytes(free=100, taken=50, cached=30, reserve=10) == 110
    assert room_bytes(free=100, taken=50, cached=60, reserve=10) == 90


@pytest.mark.real
def test_a_real_engine_s_mapped_weights_are_counted_apart_from_its_own_memory(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """Read, they are its own; mapped, they are the file's: the sum is the same."""
    recipe = replace(TINY_RECIPES[0], name="mapped", n_layers=8, n_vocab=8192, quantization="F16")
    model = make_model(recipe, tmp_path / "mapped-F16.gguf")
    weights = sum(tensor.n_bytes for tensor in read_header(model).tensors)
    assert weights > 10 * MIB
    server, found = find_binary("llama-server"), {}
    for mapped in (False, True):
        args = EngineArgs(512, n_batch=64, n_ubatch=64, devices=(HOST,), use_mmap=mapped)
        with warm_engine(server, model, args, runtime_dir) as pid:
            found[mapped] = (pss_bytes([pid]) or 0, pss_bytes([pid], "Pss_File") or 0)
    assert found[True][1] - found[False][1] == pytest.approx(weights, rel=0.1)
    own = {mapped: whole - cached for mapped, (whole, cached) in found.items()}
    assert own[False] - own[True] == pytest.approx(weights, rel=0.1)


def test_files_that_cannot_be_mapped_are_copied(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would refuse to load them otherwise; no header is mapped either."""
    args = EngineArgs(n_ctx=512)

    def refuses(*_: object, **__: object) -> None:
        raise OSError(19, "No such device")

    header = read_header(tiny_models["embedder"])
    assert Inspector().on_host(header, args, "closed-form").args.use_mmap
    monkeypatch.setattr("mmap.mmap", refuses)
    header = read_header(tiny_models["embedder"])
    assert not Inspector().on_host(header, args, "closed-form").args.use_mmap
