"""Policies by the name that a configuration uses."""

from __future__ import annotations

from collections.abc import Callable

from budget.errors import ConfigError
from budget.policies.base import EvictionPolicy
from budget.policies.lru import Lru

_POLICIES: dict[str, Callable[[], EvictionPolicy]] = {Lru.name: Lru}

POLICY_NAMES = tuple(sorted(_POLICIES))


def make_policy(name: str) -> EvictionPolicy:
    """A fresh policy.

    Raises:
        ConfigError: no policy has that name.
    """
    if name not in _POLICIES:
        raise ConfigError(
            f"Unknown eviction policy {name!r}.", hint=f"Allowed: {', '.join(POLICY_NAMES)}."
        )
    return _POLICIES[name]()
