"""What an eviction policy has learned, kept over the keeper's restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from backends.files import read_shape, write_whole
from budget.errors import KeepwarmError
from budget.policies import EvictionPolicy
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")

_unkept: set[str] = set()
"""The policies whose state could not be written the last time: that is said once."""


def experience_file(policy: EvictionPolicy) -> Path:
    """Where a policy's state lies.

    Raises:
        OSError, KeepwarmError: there is no state folder.
    """
    return state_dir() / f"policy-{policy.name}.json"


def recall(policy: EvictionPolicy) -> bool:
    """Give a policy what it had learned; returns whether there was anything.

    State that cannot be read, or that the policy refuses, is said and set aside; it is never fatal.
    """

    def take_in(state: object) -> bool:
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__} where an object belongs")
        policy.import_state(state)
        return True

    try:
        file = experience_file(policy)
    except (OSError, KeepwarmError) as error:
        LOG.warning("the policy %s begins anew: %s", policy.name, error)
        return False
    what = f"what the policy {policy.name} had learned"
    return read_shape(file, what, take_in) is not None


def remember(policy: EvictionPolicy) -> None:
    """Write what a policy has learned, whole or not at all.

    A failure is never raised, and said once until a write goes well again.
    """
    try:
        state = policy.export_state()
        if state:
            data = json.dumps(state, allow_nan=False).encode()
            write_whole(experience_file(policy), data)
    except Exception as error:
        if policy.name not in _unkept:
            LOG.warning("what the policy %s learned could not be kept: %s", policy.name, error)
        _unkept.add(policy.name)
    else:
        _unkept.discard(policy.name)
