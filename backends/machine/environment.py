"""The environment of every program that is started here: engines, and what measures for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

OWNER_VARIABLE: Final = "KEEPWARM_ENGINE_OF"
"""Variable of every engine: the runtime folder of the keeper that started it."""

_PASSED: Final = frozenset({"PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH"})
_PASSED_PREFIXES: Final = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "GGML_",
    "OMP_",
    "GOMP_",
    "KMP_",
)


def child_environment(
    added: Mapping[str, str] | None = None, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a child: an allow-list of this process's own, and `added` over it.

    No key or token of the caller is on the list. `LLAMA_ARG_*` is left out on purpose: it would
    override what keepwarm gives on the command line. GPUs are numbered by PCI bus, as NVML numbers
    them.
    """
    env = {
        name: value
        for name, value in inherited.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # An abort would start a debugger for its backtrace: seconds, for nothing.
    env.setdefault("GGML_NO_BACKTRACE", "1")
    env.update(added or {})
    return env
