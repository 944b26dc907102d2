"""The demo's real models, made once and then found in `models/demo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.demo.models import make_models

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def models() -> dict[str, Path]:
    """The file of each model by its name."""
    return make_models(REPOSITORY / "models" / "demo")
