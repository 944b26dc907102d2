"""The command line of llama-server for a build that is not ours: what it does not know is left out.

A flag that only says what older builds do anyway is left out, or written as they call it. A flag that
changes what runs is needed: without it the build is refused by the flag's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from backends.llama.binaries import build_id, is_installed
from backends.llama.known_options import known_options
from budget.errors import ConfigError

_LEFT_OUT: Final = frozenset(
    ["--sse-ping-interval", "--no-cache-idle-slots", "--ctx-checkpoints", "--cache-ram", "--fit"]
) | {
    *("--no-ui", "--offline", "--no-warmup", "--slots", "--no-kv-unified", "--repack"),
    *("--no-mmproj", "--load-mode"),
}
"""They turn off what a build without them has not, or tell the default."""
_OTHERWISE: Final = {
    ("--load-mode", "none"): ["--no-mmap"],
    ("--load-mode", "mmap"): ["--mmap"],
    ("--spec-draft-model", None): ["--model-draft"],
    ("--ctx-checkpoints", None): ["--swa-checkpoints"],
    ("--no-ui", None): ["--no-webui"],
}
"""Older names, by flag and value (None: any, which follows)."""


def fitted(
    binary: Path, argv: Sequence[str], further: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The arguments that a build knows, and the flags that it does not and that were left out.

    Args:
        binary: the llama-server.
        argv: the arguments of keepwarm.
        further: the user's own at their end, which stay as they are (`known_options.check_options`).

    Raises:
        ConfigError: a flag that is needed is not known.
        MeasurementFailed: the build does not say what it knows.
    """
    if is_installed(binary):
        return list(argv), []
    known = known_options(binary, build_id(binary))
    return fitted_to(known, argv, further, binary)


def fitted_to(
    known: AbstractSet[str], argv: Sequence[str], further: Sequence[str], binary: Path
) -> tuple[list[str], list[str]]:
    """As `fitted`, by the flags that a build knows.

    Raises:
        ConfigError: as `fitted`.
    """
    own = argv[: len(argv) - len(further)]
    found: list[str] = []
    left_out: list[str] = []
    for flag, values in _flags(own):
        if flag in known or not flag.startswith("--"):
            found += [flag, *values]
            continue
        if (older := _older(flag, values, known)) is not None:
            found += older
        elif flag in _LEFT_OUT:
            left_out.append(flag)
        else:
            raise ConfigError(
                f"{binary} knows no {flag}, which this model needs.",
                hint="Name a newer llama-server, or leave out what asks for it.",
                argument=flag,
                binary=str(binary),
            )
    return [*found, *further], left_out


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with its values. Values begin with no two dashes."""
    at = 0
    while at < len(argv):
        end = at + 1
        while end < len(argv) and not argv[end].startswith("--"):
            end += 1
        yield argv[at], list(argv[at + 1 : end])
        at = end


def _older(flag: str, values: list[str], known: AbstractSet[str]) -> list[str] | None:
    """The flag as the build calls it; None where it has no name for it."""
    exact = _OTHERWISE.get((flag, values[0] if values else ""))
    if exact is not None and exact[0] in known:
        return exact
    renamed = _OTHERWISE.get((flag, None))
    return [*renamed, *values] if renamed is not None and renamed[0] in known else None
