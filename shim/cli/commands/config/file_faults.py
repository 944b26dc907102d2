"""What `config check` finds in the files that a configuration names, and in the environment."""

from __future__ import annotations

import os
from typing import Any

from backends.gguf import GgufHeader, read_header
from backends.machine.files.in_folder import in_folder
from backends.vllm.model_folder import read_folder
from budget.errors import KeepwarmError
from shim.config import Config, ModelEntry
from shim.config.problems import dotted
from shim.keeper.catalog.model_checks import faults


def file_faults(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """Look into every file that is here. Nothing is downloaded, and no endpoint is asked.

    Returns:
        Each mistake as `config check --json` prints it, and the models of which messages would be written
        as ChatML for want of a template.
    """
    problems, without_template = [], []
    for key, file in config.missing_files():
        what, allowed = "not there", "a file that can be read"
        if file.is_dir():
            what, allowed = "a folder", f"a file. {in_folder(file)[:-1]}"
        problems.append(_problem(config, key, f"{file}, which is {what}", allowed))
    missing = {problem["key"] for problem in problems}
    for name, entry in config.models.items():
        variable = entry.api_key_env
        if variable is not None and not os.environ.get(variable, "").strip():
            # Every call of an endpoint whose key is not there is refused.
            key, found = dotted(("models", name, "api_key_env")), f"{variable}, which is not set"
            problems.append(_problem(config, key, found, "a variable that holds the key"))
        header, errors = _look_into(name, entry)
        for part, error in errors:
            key, told = dotted(("models", name, part)), f"{error.message} {error.hint}".rstrip()
            if key not in missing:
                problems.append(_problem(config, key, error.message, error.hint, told))
        if header is not None and _has_no_template(entry, header):
            without_template.append(name)
    return problems, without_template


def _problem(config: Config, key: str, found: str, allowed: str, told: str = "") -> dict[str, Any]:
    origin = config.origin(key)
    line = origin.rpartition(":")[2]
    return {
        "key": key,
        "line": int(line) if line.isdigit() else None,
        "found": found,
        "allowed": allowed,
        "message": f"{origin}: {key}: {told or f'found {found}; allowed: {allowed}.'}",
    }


def _look_into(
    name: str, entry: ModelEntry
) -> tuple[GgufHeader | None, list[tuple[str, KeepwarmError]]]:
    if entry.backend == "vllm" and entry.path is not None and entry.path.exists():
        try:
            read_folder(entry.path)
        except KeepwarmError as error:
            return None, [("path", error)]
    if not entry.is_gguf or entry.path is None or not entry.path.is_file():
        return None, []
    try:
        header = read_header(entry.path)
    except KeepwarmError as error:
        return None, [("path", error)]
    return header, list(faults(name, entry, header))


def _has_no_template(entry: ModelEntry, header: GgufHeader) -> bool:
    """Whether a chat model's file brings no template, and the configuration gives none."""
    given = any(argument.startswith("--chat-template") for argument in entry.engine_args)
    return not given and entry.role != "embedder" and header.chat_template is None
