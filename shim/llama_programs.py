"""Runs the programs that come with llama.cpp, such as `llama-quantize`, as keepwarm finds them."""

from __future__ import annotations

import os
import subprocess
from typing import Final

from backends.llama.binaries import find_binary, library_env
from budget.errors import OutsideError

_LIMIT_S: Final = 120.0
_LINES_SHOWN: Final = 15


def run_program(name: str, *arguments: str) -> None:
    """Run one of llama.cpp's programs to its end.

    Raises:
        ConfigError: llama.cpp has no program of that name here.
        OutsideError: the program failed or did not end; its last lines are the fact `log_tail`.
    """
    binary = find_binary(name)
    try:
        done = subprocess.run(
            [str(binary), *arguments],
            check=False,
            env=os.environ | library_env(binary) | {"GGML_NO_BACKTRACE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise OutsideError(f"{binary} did not end within {_LIMIT_S:.0f} s.") from None
    if done.returncode:
        raise OutsideError(
            f"{binary} ended with code {done.returncode}.",
            log_tail=done.stdout.splitlines()[-_LINES_SHOWN:],
        )
