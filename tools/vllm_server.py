"""A real vLLM API server on this machine's CPU, for tests and benchmarks, as another user would run it.

`tools/side_environment.py vllm` builds the environment that it runs in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.machine.children import serving
from backends.machine.environment import child_environment
from backends.machine.files.shared_memory import remove_segments, segments_of
from backends.machine.processes import process_tree
from tools.hf_model import HfRecipe, make_hf_model
from tools.setup_run import SetupError
from tools.side_environment import ROOT, environment, is_built

NAME: Final = "far"
CONTEXT: Final = 512
SLOTS: Final = 16
START_LIMIT_S: Final = 600.0
END_LIMIT_S: Final = 15.0
_READY: Final = b"Application startup complete"
_ARGUMENTS: Final = [
    *("--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS)),
    *("--dtype", "bfloat16", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20)),
]
TOOLS: Final = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A server that is ready: its address, its process, and the seconds that its start took."""

    url: str
    pid: int
    ready_s: float


def vllm_python() -> Path:
    """The interpreter of vLLM's environment.

    Raises:
        SetupError: it is not built.
    """
    if not is_built("vllm"):
        raise SetupError("vLLM's environment is not built: run `make test-vllm`")
    return environment("vllm") / "bin" / "python"


def vllm_model(n_layers: int = HfRecipe().n_layers, *, sees: bool = False) -> Path:
    """The folder of a small model that vLLM reads; made when it is missing."""
    folder = ROOT / "models" / f"hf-{n_layers}{'-sees' if sees else ''}"
    return make_hf_model(folder, HfRecipe(n_layers=n_layers, sees=sees))


@contextlib.contextmanager
def vllm_server(model: Path, log: Path, extra: Sequence[str] = TOOLS) -> Iterator[VllmServer]:
    """Run a server on a free port of loopback while the block runs; all its processes end with it.

    Raises:
        SetupError: the environment is not built.
        MeasurementFailed: the server does not start. Facts: `log_tail`.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["nice", str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", NAME, *_ARGUMENTS, *extra]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
    env = child_environment(offline)
    segments: set[str] = set()
    with (
        _removed(segments),
        serving(command, env, log, lambda: _READY in log.read_bytes(), START_LIMIT_S) as served,
    ):
        segments |= segments_of(process_tree(served.pid))
        try:
            yield VllmServer(url, served.pid, served.ready_s)
        finally:
            _end_politely(served.pid)


@contextlib.contextmanager
def _removed(segments: set[str]) -> Iterator[None]:
    """Remove shared memory afterwards: a server whose engine was killed leaves it."""
    try:
        yield
    finally:
        remove_segments(segments)


def _end_politely(group: int) -> None:
    """Let the server remove its shared memory, which it does not do when it is killed."""
    until_s = time.monotonic() + END_LIMIT_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < until_s and _runs(group):
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
