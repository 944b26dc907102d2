"""Folders and models of the tests of carried KV state."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.demo.models import TINY_RECIPES, make_model

MODELS = Path(__file__).resolve().parents[2] / "models" / "tiny"


@pytest.fixture
def kv_folder(runtime_dir: Path) -> Iterator[Path]:
    """Where a test's keeper keeps KV state."""
    yield runtime_dir / "kv"
    shutil.rmtree(runtime_dir / "kv", ignore_errors=True)


@pytest.fixture(params=["F16", "Q4_0", "Q4_K_M"])
def chat_model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    """One tiny llama in each quantization."""
    assert tiny_models
    recipe = replace(TINY_RECIPES[0], name="kv", quantization=request.param)
    return make_model(recipe, MODELS / f"tiny-kv-{request.param}.gguf")
