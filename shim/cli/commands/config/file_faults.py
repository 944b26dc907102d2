"""What `config check` finds in the files that a configuration names, and in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from backends.gguf import GgufHeader, read_header
from backends.machine.files.in_folder import in_folder
from backends.vllm.model_folder import read_folder
from budget.errors import KeepwarmError
from shim.config import Config, ModelEntry
from shim.config.problems import dotted
from shim.keeper.catalog.model_checks import faults


@dataclass(frozen=True, slots=True)
class FileFault:
    """A mistake that no key shows by itself: its key, what was found, what is allowed or to be done."""

    key: str
    found: str
    allowed: str
    message: str


@dataclass(frozen=True, slots=True)
class FileFaults:
    """All faults, and the models of which messages would be written as ChatML for want of a template."""

    faults: list[FileFault]
    without_template: list[str]


def file_faults(config: Config) -> FileFaults:
    """Look into every file that is here. Nothing is downloaded, and no endpoint is asked."""
    found = [
        _fault(key, f"{file}, which is a folder", f"a file. {in_folder(file)[:-1]}")
        if file.is_dir()
        else _fault(key, f"{file}, which is not there", "a file that can be read")
        for key, file in config.missing_files()
    ]
    missing = {fault.key for fault in found}
    without_template = []
    for name, entry in config.models.items():
        found += _unset_variable(name, entry)
        header, errors = _look_into(name, entry)
        for key, error in errors:
            full = dotted(("models", name, key))
            if full not in missing:
                what = f"{error.message} {error.hint}"
                found.append(FileFault(full, error.message, error.hint, what.rstrip()))
        if header is not None and _has_no_template(entry, header):
            without_template.append(name)
    return FileFaults(found, without_template)


def _fault(key: str, found: str, allowed: str) -> FileFault:
    return FileFault(key, found, allowed, f"found {found}; allowed: {allowed}.")


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


def _unset_variable(name: str, entry: ModelEntry) -> list[FileFault]:
    """Every call of an endpoint whose key is not there is refused."""
    variable = entry.api_key_env
    if variable is None or os.environ.get(variable, "").strip():
        return []
    key = dotted(("models", name, "api_key_env"))
    return [_fault(key, f"{variable}, which is not set", "a variable that holds the key")]
