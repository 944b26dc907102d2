"""The settings of a configuration beside its models, and which of them need a restart of the keeper."""

from __future__ import annotations

from typing import Final

from backends.engine_process.process_engine import usable_cores
from budget.settings import CoreSettings, Prefetch
from shim.config import Config

RESTART_KEYS: Final = frozenset({"budget.policy", "kv.folder"})
"""Keys that a running keeper cannot take over. (A change of the devices refuses the whole reload.)"""

_PREFETCH: Final[dict[bool | str, Prefetch]] = {
    True: "load",
    False: "off",
    "spare": "spare",
    "stage": "stage",
}


def core_settings(config: Config) -> CoreSettings:
    """A configuration's settings of the core."""
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
    """The highest rate at which files are read ahead; None means no bound."""
    rate = config.budget.stage_rate.resolve(0)
    return float(rate) if rate else None


def restart_keys(began_with: Config, now: Config) -> list[str]:
    """The changed keys that take effect only when the keeper starts again."""
    return sorted(RESTART_KEYS.intersection(began_with.diff(now).sections))
