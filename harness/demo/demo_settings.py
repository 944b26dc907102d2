"""The demo's configuration: four entries, and a limit for about half of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness.demo.texts import RUBRIC
from shim import Config
from shim.keeper.catalog.catalog import build_catalog

SLACK: Final = 1.03
"""The limit over the sum of the two models that it has to hold: learned figures may be larger."""

# Batches are small, so that the new part of a prompt fills a batch even after the state of the prompt
# before was restored. A compute buffer takes all its bytes only when a batch is full.
_ENTRIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "classifier": {"role": "planner", "context": 8192, "n_batch": 64, "n_ubatch": 64},
    "embedder": {"role": "embedder", "context": 96, "n_batch": 96, "n_ubatch": 96},
    "producer": {"role": "producer", "context": 512, "n_batch": 64, "n_ubatch": 64},
    "evaluator": {
        "role": "evaluator",
        "context": 768,
        "n_batch": 128,
        "n_ubatch": 128,
        "warm_prompt": RUBRIC,
    },
}


def demo_config(models: Mapping[str, Path], device: str, limit: int | str = "100%") -> Config:
    """The configuration with a limit. The evaluator is pinned by its role."""
    return Config.from_mapping(
        {
            "budget": {"device": device, "limit": limit, "reserve": 0},
            "models": {
                name: {"path": str(models[name]), **entry} for name, entry in _ENTRIES.items()
            },
        },
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
    """About half of all bytes: enough for the pinned evaluator beside the largest other model."""
    others = [amount for name, amount in booked.items() if name != "evaluator"]
    return int((booked["evaluator"] + max(others)) * SLACK)
