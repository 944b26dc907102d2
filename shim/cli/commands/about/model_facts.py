"""The facts of a model that `list` and `show` print: of its entry, its file's header, and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.gguf import GgufHeader, read_header
from backends.vllm.model_folder import read_folder
from budget.errors import KeepwarmError
from shim.cli.commands.inspect.learned_lines import learned_on
from shim.cli.console.running import ask_running, engine_row
from shim.config import Config, ModelEntry, fetch_hub_file
from shim.keeper.catalog.corrections import learned_store
from shim.placement.requested import engine_args, fitted_args, sizes_of
from shim.wire.fingerprint import called


def file_facts(entry: ModelEntry) -> dict[str, Any]:
    """What the header of a local model's file says; `problem` says why it cannot. Nothing is downloaded.

    Keys: `file`, `files`, `file_bytes`, `title`, `architecture`, `parameters`, `quantization`,
    `min_bits_per_weight`, `trained_context`, `context`, `context_per_slot`, `chat_template`, `tools`,
    `pooling`, `license`, `problem`. Those that are not known are None.
    """
    found: dict[str, Any] = dict.fromkeys(
        (*_OF_HEADER, "context", "context_per_slot", "problem"), None
    )
    try:
        path = fetch_hub_file(entry.hf, offline=True) if entry.hf is not None else entry.path
        if path is None:
            return found
        found["file"] = str(path)
        if entry.backend == "vllm":
            return {**found, **_of_folder(path)}
        header = read_header(path)
        shape = header.shape()
        args = fitted_args(engine_args(entry), entry, shape, sizes_of(entry)[0])
    except KeepwarmError as error:
        return {**found, "problem": error.message}
    found.update(zip(_OF_HEADER, _of_header(path, header), strict=True))
    found["context"], found["context_per_slot"] = args.n_ctx, args.context_per_slot
    return found


_OF_HEADER = (
    "file",
    "files",
    "file_bytes",
    "title",
    "architecture",
    "parameters",
    "quantization",
    "min_bits_per_weight",
    "trained_context",
    "chat_template",
    "tools",
    "pooling",
    "license",
)


def _of_folder(path: Path) -> dict[str, Any]:
    folder = read_folder(path)
    return {
        "files": len(folder.files),
        "file_bytes": folder.weights_bytes,
        "architecture": folder.architecture,
        "quantization": folder.quantization,
        "trained_context": folder.context_length or None,
    }


def _of_header(path: Path, header: GgufHeader) -> tuple[Any, ...]:
    shape, template = header.shape(), header.chat_template
    license_of = header.metadata.get("general.license")
    return (
        str(path),
        len(header.files),
        header.file_bytes,
        header.name,
        header.architecture,
        header.parameters,
        header.quantization,
        header.min_bits_per_weight,
        shape.context_length or None,
        template is not None,
        template is not None and "tools" in template,
        shape.pooling or None,
        license_of if isinstance(license_of, str) else None,
    )


def engine_facts(status: Mapping[str, Any] | None, config: Config, name: str) -> dict[str, Any]:
    """What the running keeper says of a model's engine. Keys: `state`, `bytes`, `measured`, `waiting`.

    `state` is `remote` for a model at an endpoint, and `absent` where no keeper runs.
    """
    row = engine_row(status, called(config, name)) if status else None
    remote = config.models[name].remote
    if remote or row is None:
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
        "hf": str(entry.hf) if entry.hf else None,
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
    return {
        **common,
        **facts,
        "learned_on": _learned_on(facts["file"]),
        **engine_facts(status, config, name),
    }


def _learned_on(file: str | None) -> str | None:
    """The day on which an engine of a file was last found to take other bytes than were estimated."""
    try:
        known = learned_store().of_file(read_header(file).identity) if file is not None else []
    except KeepwarmError:
        return None
    return max((day for row in known if (day := learned_on(row))), default=None)


def _source_key(entry: ModelEntry) -> str:
    known = ("url", "hf", "factory", "command", "path")
    return next(key for key in known if getattr(entry, key) is not None)


def keeper_status() -> Mapping[str, Any] | None:
    """The running keeper's status; None where none runs."""
    return ask_running("status")
