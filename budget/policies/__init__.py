"""Whom to evict. A policy gives each candidate a loss; the choice of the set is in `budget.victims`."""

from budget.policies.base import EvictionPolicy
from budget.policies.lru import Lru
from budget.policies.registry import DEFAULT_POLICY, POLICY_NAMES, make_policy

__all__ = ["DEFAULT_POLICY", "POLICY_NAMES", "EvictionPolicy", "Lru", "make_policy"]
