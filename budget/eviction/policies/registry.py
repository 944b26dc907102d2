"""Policies by the name that a configuration uses."""

from __future__ import annotations

from collections.abc import Callable

from budget.errors import ConfigError
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.forecast import Forecast
from budget.eviction.policies.idle_cost import IdleCost
from budget.eviction.policies.lfu_decay import LfuDecay
from budget.eviction.policies.lru import Lru
from budget.eviction.policies.ttl import Ttl

_POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    Forecast.name: Forecast,
    IdleCost.name: IdleCost,
    LfuDecay.name: LfuDecay,
    Lru.name: Lru,
    Ttl.name: Ttl,
}

DEFAULT_POLICY = Forecast.name
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
