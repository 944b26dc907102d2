"""What of a configuration the keeper acts on beside its models, and when a change of it takes effect."""

from __future__ import annotations

from typing import Final

from backends.llama.engine import usable_cores
from budget.settings import CoreSettings, Prefetch
from shim.config import Config

RESTART_KEYS: Final = frozenset({"budget.policy", "kv.folder"})
"""Keys that a running keeper cannot take over. Other devices refuse the whole reload."""

_PREFETCH: Final[dict[bool | str, Prefetch]] = {
    True: "load",
    False: "off",
    "spare": "spare",
    "stage": "stage",
}


def core_settings(config: Config) -> CoreSettings:
    """The settings of the core."""
    budget = config.budget
    return CoreSettings(
        budget.max_wait,
        budget.max_queue,
        budget.max_queue_per_model,
        _PREFETCH[budget.prefetch],
        budget.preempt,
        usable_cores(),
    )


def stage_bytes_per_s(config: Config) -> float | None:
    """How fast files are read ahead at most; None is no bound."""
    rate = config.budget.stage_rate.resolve(0)
    return float(rate) if rate else None


def restart_keys(began_with: Config, now: Config) -> list[str]:
    """The keys of a configuration that a keeper that began with another one has not taken over."""
    return sorted(RESTART_KEYS.intersection(began_with.diff(now).sections))
