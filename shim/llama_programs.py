"""Runs the programs that come with llama.cpp, such as `llama-quantize`, as keepwarm finds them."""

from __future__ import annotations

import os
from typing import Final

from backends.llama.binaries import find_binary, library_env
from backends.machine.children import ask_child
from budget.errors import OutsideError

_LIMIT_S: Final = 120.0
_LINES_SHOWN: Final = 15


def run_program(name: str, *arguments: str) -> None:
    """Run one of llama.cpp's programs to its end.

    Raises:
        ConfigError: llama.cpp has no program of that name here.
        MeasurementFailed: the program cannot be started.
        OutsideError: the program failed or did not end; its last lines are the fact `log_tail`.
    """
    binary = find_binary(name)
    env = os.environ | library_env(binary) | {"GGML_NO_BACKTRACE": "1"}
    done = ask_child([str(binary), *arguments], env, _LIMIT_S)
    if done.cut:
        raise OutsideError(f"{binary} did not end within {_LIMIT_S:.0f} s, or said too much.")
    if done.code:
        raise OutsideError(
            f"{binary} ended with code {done.code}.",
            log_tail=list((done.out + done.log).splitlines()[-_LINES_SHOWN:]),
        )
