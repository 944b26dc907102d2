"""The facts of a model that `list` and `show` print: of its entry, its file's header, and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from backends.gguf import GgufHeader, read_header
from backends.vllm.model_folder import read_folder
from budget.errors import KeepwarmError
from shim.cli.commands.inspect.learned_lines import learned_on
from shim.cli.console.running import engine_row
from shim.config import Config, ModelEntry, fetch_hub_file
from shim.keeper.catalog.corrections import learned_store
from shim.placement.requested import engine_args, fitted_args, sizes_of
from shim.wire.fingerprint import called

_OF_FILE: Final = (
    *("file", "files", "file_bytes", "title", "architecture", "parameters", "quantization"),
    *("min_bits_per_weight", "trained_context", "chat_template", "tools", "pooling", "license"),
    *("context", "context_per_slot", "problem"),
)


def file_facts(entry: ModelEntry) -> dict[str, Any]:
    """What the header of a local model's file says; `problem` says why it cannot. Nothing is downloaded.

    Keys: `_OF_FILE`. Those that are not known are None.
    """
    found: dict[str, Any] = dict.fromkeys(_OF_FILE)
    try:
        path = fetch_hub_file(entry.hf, offline=True) if entry.hf is not None else entry.path
        if path is None:
            return found
        found["file"] = path
        if entry.backend == "vllm":
            return {**found, **_of_folder(path)}
        header = read_header(path)
        args = fitted_args(engine_args(entry), entry, header.shape(), sizes_of(entry)[0])
    except KeepwarmError as error:
        return {**found, "problem": error.message}
    context = {"context": args.n_ctx, "context_per_slot": args.context_per_slot}
    return {**found, **_of_header(header), **context}


def _of_folder(path: Path) -> dict[str, Any]:
    folder = read_folder(path)
    return {
        "files": len(folder.files),
        "file_bytes": folder.weights_bytes,
        "architecture": folder.architecture,
        "quantization": folder.quantization,
        "trained_context": folder.context_length or None,
    }


def _of_header(header: GgufHeader) -> dict[str, Any]:
    shape, template = header.shape(), header.chat_template
    license_of = header.metadata.get("general.license")
    return {
        "files": len(header.files),
        "file_bytes": header.file_bytes,
        "title": header.name,
        "architecture": header.architecture,
        "parameters": header.parameters,
        "quantization": header.quantization,
        "min_bits_per_weight": header.min_bits_per_weight,
        "trained_context": shape.context_length or None,
        "chat_template": template is not None,
        "tools": template is not None and "tools" in template,
        "pooling": shape.pooling or None,
        "license": license_of if isinstance(license_of, str) else None,
    }


def engine_facts(status: Mapping[str, Any] | None, config: Config, name: str) -> dict[str, Any]:
    """What the running keeper says of a model's engine. Keys: `state`, `bytes`, `measured`, `waiting`.

    `state` is `remote` for a model at an endpoint, and `absent` where no keeper runs.
    """
    remote = config.models[name].remote
    row = engine_row(status, called(config, name)) if status and not remote else None
    if row is None:
        state = "remote" if remote else "absent"
        return {"state": state, "bytes": None, "measured": None, "waiting": 0}
    return {
        "state": row["state"],
        "bytes": sum(row["bytes"].values()) if row["bytes"] else None,
        "measured": row["measured"],
        "waiting": row["waiting"],
    }


def facts_of(config: Config, name: str, status: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that `show --json` prints of a model."""
    entry = config.models[name]
    common = {
        "model": name,
        "role": entry.role,
        "backend": entry.backend,
        "remote": entry.remote,
        "url": entry.url,
        "model_id": (entry.model_id or name) if entry.remote else None,
        "hf": entry.hf,
        "factory": entry.factory,
        "command": list(entry.command) if entry.command else None,
        "from": config.origin(f"models.{name}.{_source_key(entry)}"),
        "slots": None if entry.remote else int(entry.slots),
        "kv_types": list(entry.kv_types) if entry.is_gguf else None,
        "pinned": entry.pinned,
        "priority": entry.priority,
        "keep_alive_s": None if entry.remote else entry.stays_s,
    }
    facts = file_facts(entry)
    learned = {"learned_on": _learned_on(facts["file"])}
    return {**common, **facts, **learned, **engine_facts(status, config, name)}


def _learned_on(file: Path | None) -> str | None:
    """The day on which an engine of a file was last found to take other bytes than were estimated."""
    try:
        known = learned_store().of_file(read_header(file).identity) if file is not None else []
    except KeepwarmError:
        return None
    return max((day for row in known if (day := learned_on(row))), default=None)


def _source_key(entry: ModelEntry) -> str:
    known = ("url", "hf", "factory", "command", "path")
    return next(key for key in known if getattr(entry, key) is not None)
