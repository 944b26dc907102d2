"""What Ollama has in memory, of the models of a configuration and others: it has a budget of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from backends.flows import run_blocking
from backends.openai.sync_client import SyncTransport
from budget.errors import KeepwarmError
from shim.calls.session import remote_endpoint
from shim.cli.console.output import print_table, size
from shim.config import Config

ANSWER_LIMIT_S: Final = 2.0


def rows_of(config: Config) -> list[dict[str, Any]]:
    """The models in memory at each Ollama of a configuration, or why it does not say."""
    named: dict[str, dict[str, str]] = {}
    found: list[dict[str, Any]] = []
    for model, entry in config.models.items():
        if entry.backend == "ollama":
            name = entry.model_id or model
            named.setdefault(entry.url or "", {})[name if ":" in name else f"{name}:latest"] = model
    transport = SyncTransport()
    for url, models in named.items():
        try:
            endpoint = remote_endpoint(next(iter(models.values())), config)
            asked = transport.flows.residents(endpoint, within_s=ANSWER_LIMIT_S)
            found += [
                {
                    "url": url,
                    "model": models.get(one.name),
                    "name": one.name,
                    "bytes": one.n_bytes,
                    "gpu_bytes": one.gpu_bytes,
                    "expires_at": one.expires_at,
                }
                for one in run_blocking(asked)
            ]
        except KeepwarmError as error:
            found.append({"url": url, "error": error.message})
    transport.close()
    return found


def print_ollama(rows: Sequence[dict[str, Any]]) -> None:
    """The models in memory at Ollama."""
    if not rows:
        return
    print_table(
        ("at Ollama", "model", "bytes", "on GPUs", "until"),
        [
            (row["url"], row["error"], "", "", "")
            if "error" in row
            else (
                row["name"],
                row["model"] or "",
                size(row["bytes"]),
                size(row["gpu_bytes"]),
                row["expires_at"],
            )
            for row in rows
        ],
        right=("bytes", "on GPUs"),
    )
