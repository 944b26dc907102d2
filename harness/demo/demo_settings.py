"""The demo's configuration: an entry for each model that is there, and a limit for half of their bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from harness.demo.found_models import DemoModels
from shim import Config
from shim.keeper.catalog.catalog import build_catalog

SLACK: Final = 1.03
"""The limit over the sum of the two models that it has to hold: learned figures may be larger."""
THREADS: Final = max(1, (os.cpu_count() or 2) // 2)
"""Of each engine: where all cores compute, a load can only take their time away."""

# Batches are small, so that every prompt fills one: a compute buffer takes its bytes only then.
_ENTRIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "classifier": {"role": "embedder", "context": 96, "n_batch": 96, "n_ubatch": 96},
    "embedder": {"role": "embedder", "context": 128, "n_batch": 128, "n_ubatch": 128},
    "producer": {"role": "producer", "context": 512, "n_batch": 64, "n_ubatch": 64},
    "evaluator": {"role": "evaluator", "context": 768, "n_batch": 128, "n_ubatch": 128},
    "answerer": {"context": 1024, "n_batch": 32, "n_ubatch": 32},
}
_EAR_BYTES: Final = "240MB"
"""What Whisper takes while it hears; after that it is less."""


def demo_config(models: DemoModels, device: str, limit: int | str = "100%") -> Config:
    """The configuration with a limit. The evaluator is pinned by its role."""
    entries: dict[str, Any] = {
        name: {"path": str(models.files[name]), "threads": THREADS, **entry}
        for name, entry in _ENTRIES.items()
        if name in models.files
    }
    if models.speech is not None:
        ear = str(models.files["ear"])
        options = {"model": ear, "device": "cpu", "compute_type": "int8", "cpu_threads": THREADS}
        entries["ear"] = {
            "factory": "faster-whisper", "python": str(models.speech), "options": options,
            "files": [ear], "bytes": _EAR_BYTES, "threads": THREADS,
        }  # fmt: skip
    return Config.from_mapping(
        {"budget": {"device": device, "limit": limit, "reserve": 0}, "models": entries},
        label="the demo's configuration",
    )


def booked_bytes(config: Config) -> tuple[str, dict[str, int]]:
    """The budgeted device, and the bytes that will be booked there for every model.

    Raises:
        KeepwarmError: a model cannot be measured.
    """
    catalog = build_catalog(config)
    for error in catalog.errors.values():
        raise error
    device = catalog.device.name
    return device, {
        name: dict(prepared.placements[0].bookings).get(device, 0)
        for name, prepared in catalog.prepared.items()
    }


def half_limit_bytes(booked: Mapping[str, int]) -> int:
    """Half of all bytes, or what the pinned evaluator and the largest other model need, if that is more."""
    others = [amount for name, amount in booked.items() if name != "evaluator"]
    pair = int((booked["evaluator"] + max(others)) * SLACK)
    return max(pair, sum(booked.values()) // 2)
