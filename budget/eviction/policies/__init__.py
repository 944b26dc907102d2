"""Policies: each gives a loss to every candidate. `eviction.victims` chooses the set that leaves."""

from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.lru import Lru
from budget.eviction.policies.registry import DEFAULT_POLICY, POLICY_NAMES, make_policy

__all__ = ["DEFAULT_POLICY", "POLICY_NAMES", "EvictionPolicy", "Lru", "make_policy"]
