"""Keeps the state that an eviction policy has learned over the keeper's restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from backends.machine.files.whole_files import is_there, read_shape, write_whole
from budget.errors import KeepwarmError
from budget.eviction.policies import EvictionPolicy
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")

_unkept: set[str] = set()
"""The policies whose last write failed. Only the first such failure is logged."""
_unread: set[Path] = set()
"""Files that could not be read at the keeper's start. They are not overwritten, to lose nothing."""


def experience_file(policy: EvictionPolicy) -> Path:
    """The path of a policy's state.

    Raises:
        ConfigError: there is no state folder.
    """
    return state_dir() / f"policy-{policy.name}.json"


def recall(policy: EvictionPolicy) -> bool:
    """Give a policy its saved state; returns whether there was any.

    State that cannot be read, or that the policy refuses, is logged and set aside; it is never fatal.
    """

    def take_in(state: object) -> bool:
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__} where an object belongs")
        policy.import_state(state)
        return True

    try:
        file = experience_file(policy)
    except KeepwarmError as error:
        LOG.warning("the policy %s begins anew: %s", policy.name, error)
        return False
    _unread.discard(file)
    if read_shape(file, f"what the policy {policy.name} had learned", take_in):
        return True
    if is_there(file):
        _unread.add(file)
    return False


def remember(policy: EvictionPolicy) -> None:
    """Write a policy's state, whole or not at all.

    A failure is never raised. It is logged once, until a write succeeds again.
    """
    try:
        state, file = policy.export_state(), experience_file(policy)
        if state and file not in _unread:
            write_whole(file, json.dumps(state, allow_nan=False).encode())
    except Exception as error:
        if policy.name not in _unkept:
            LOG.warning("what the policy %s learned could not be kept: %s", policy.name, error)
        _unkept.add(policy.name)
    else:
        _unkept.discard(policy.name)
