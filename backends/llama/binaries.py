"""Finds llama.cpp's executables and their libraries, and names their build."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from budget.errors import ConfigError

FOLDER_VARIABLE: Final = "KEEPWARM_LLAMA_BIN"
"""The environment variable that names a folder of llama.cpp executables, over every other place."""

_DISTRIBUTION: Final = "llama-cpp-python"


def find_binary(name: str) -> Path:
    """The executable of that name (`llama-server`, say).

    Looked for in `$KEEPWARM_LLAMA_BIN` alone where that is set; else beside the installed
    `llama_cpp` package, then on `PATH`.

    Raises:
        ConfigError: it does not exist, or may not be executed. Facts: `binary`, `searched`.
    """
    override = os.environ.get(FOLDER_VARIABLE)
    places = [Path(override)] if override else _installed_folders()
    for place in places:
        candidate = place / name
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    found = None if override else shutil.which(name)
    if found is not None:
        return Path(found)
    searched = [str(place) for place in places] + ([] if override else ["PATH"])
    raise ConfigError(
        f"llama.cpp's {name} was not found in {', '.join(searched)}.",
        hint=(
            f"Set {FOLDER_VARIABLE} to a folder that has it."
            if override
            else f"Run `make setup`, which builds it with {_DISTRIBUTION}, or set "
            f"{FOLDER_VARIABLE} to a folder that has it."
        ),
        binary=name,
        searched=list(searched),
    )


def is_installed(binary: Path) -> bool:
    """Whether it is the one that comes with the installed `llama_cpp` package."""
    return binary.parent in _installed_folders()


def runs_by_binding() -> bool:
    """Whether llama-cpp-python runs GGUF files here, because it is installed without a llama-server.

    A folder that is named, and has none, is a mistake that `find_binary` reports.
    """
    if os.environ.get(FOLDER_VARIABLE) or binding_folder() is None:
        return False
    try:
        find_binary("llama-server")
    except ConfigError:
        return True
    return False


def engine_build() -> str:
    """The `build_id` of what runs engines here: llama-server, or else llama-cpp-python's libraries.

    Raises:
        ConfigError: there is neither.
    """
    if runs_by_binding():
        return f"{importlib.metadata.version(_DISTRIBUTION)}-{_digest(binding_libraries())}"
    return build_id(find_binary("llama-server"))


def library_env(binary: Path) -> dict[str, str]:
    """The environment variables with which `binary` finds its own shared libraries.

    A build without an install rpath does not find the `lib` folder beside its `bin` by itself, and
    would take another llama.cpp's libraries from the system. Empty where there is no such folder.
    """
    folder = _library_folder(binary)
    if folder is None:
        return {}
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{folder}:{inherited}" if inherited else str(folder)}


def build_id(binary: Path) -> str:
    """A key for caches of this build's measurements; it changes when any of its files is replaced.

    Made of the distribution's version (`external` outside of it) and a hash over name, size and
    modification time of the executable and its libraries.
    """
    version = "external"
    if is_installed(binary):
        version = importlib.metadata.version(_DISTRIBUTION)
    folder = _library_folder(binary)
    libraries = sorted(folder.glob("lib*.so*")) if folder else []
    return f"{version}-{_digest([binary, *libraries])}"


def binding_folder() -> Path | None:
    """The folder of the installed `llama_cpp` package; `None` where it cannot be imported.

    It is not imported, because that would load llama.cpp's libraries into this process.
    """
    try:
        spec = importlib.util.find_spec("llama_cpp")
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def binding_libraries() -> list[Path]:
    """llama.cpp's libraries as the installed `llama_cpp` package has them; none where it is not there."""
    folder = binding_folder()
    return [] if folder is None else sorted((folder / "lib").glob("lib*.so*"))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _installed_folders() -> list[Path]:
    folder = binding_folder()
    return [] if folder is None else [folder.parent / "bin"]


def _library_folder(binary: Path) -> Path | None:
    folder = binary.parent.parent / "lib"
    holds_llama = any(folder.glob("libllama.so*")) or any(folder.glob("libllama.dylib"))
    return folder if holds_llama else None
