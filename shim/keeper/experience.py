"""What an eviction policy has learned, kept over the keeper's restarts."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from budget.errors import ConfigError
from budget.policies import EvictionPolicy
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")


def experience_file(policy: EvictionPolicy) -> Path:
    """Where a policy's state lies."""
    return state_dir() / f"policy-{policy.name}.json"


def recall(policy: EvictionPolicy) -> bool:
    """Give a policy what it had learned; damaged state is said and dropped. Returns whether."""
    file = experience_file(policy)
    try:
        policy.import_state(json.loads(file.read_text()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, ConfigError) as error:
        LOG.warning("what the policy %s had learned is dropped: %s", policy.name, error)
        file.unlink(missing_ok=True)
        return False
    return True


def remember(policy: EvictionPolicy) -> None:
    """Write what a policy has learned, whole or not at all; a failure is logged, never raised."""
    state = policy.export_state()
    if not state:
        return
    file = experience_file(policy)
    new = file.with_suffix(f".{os.getpid()}")
    try:
        new.touch(mode=0o600)
        new.write_text(json.dumps(state))
        new.replace(file)
    except OSError as error:
        LOG.warning("what the policy %s learned could not be kept: %s", policy.name, error)
