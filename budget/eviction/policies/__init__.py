"""Whom to evict. A policy gives each candidate a loss; the choice of the set is in `eviction.victims`."""

from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.lru import Lru
from budget.eviction.policies.registry import DEFAULT_POLICY, POLICY_NAMES, make_policy

__all__ = ["DEFAULT_POLICY", "POLICY_NAMES", "EvictionPolicy", "Lru", "make_policy"]
