"""Whether a client and a keeper mean the same: fingerprints of what a keeper acts on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from budget.errors import ConfigError
from shim.config import Config

Fingerprint = dict[str, str]


def fingerprint(config: Config) -> Fingerprint:
    """A short hash for the budget, the keeper's section and every local model, by dotted key.

    Remote models are the client's own business: the keeper takes no part in their requests.
    """
    data = config.to_mapping()
    parts: dict[str, Any] = {key: data.get(key, {}) for key in ("budget", "keeper")}
    for name, entry in data.get("models", {}).items():
        if "url" not in entry:
            parts[f"models.{name}"] = entry
    return {key: _digest(value) for key, value in parts.items()}


def check_fingerprint(mine: Fingerprint, keepers: Fingerprint, keeper_file: str) -> None:
    """Raise `ConfigError` unless everything the client counts on is as it says at the keeper."""
    differ = sorted(key for key, digest in mine.items() if keepers.get(key) != digest)
    if differ:
        raise ConfigError(
            f"The running keeper (configuration: {keeper_file}) differs from this program's "
            f"configuration in {', '.join(differ)}.",
            hint="`keepwarm config reload` makes the keeper take yours; models that did not change "
            "stay warm.",
            differ=list(differ),
        )


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=6).hexdigest()
