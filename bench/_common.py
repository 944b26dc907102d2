"""What the benchmarks share: llama.cpp's router, a keeper of their own, percentiles, the last line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.base import Endpoint
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.machine.unix_http import blocking_request, is_healthy
from shim import KeepwarmError, Shim

REPOSITORY = Path(__file__).resolve().parents[1]
END_LIMIT_S = 10.0


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


def last_line(figures: Mapping[str, float]) -> None:
    """The result as one JSON object, the last line of standard output."""
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}), flush=True)


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile of at least two values, between neighbours where it falls between two."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def distribution(name: str, seconds: Sequence[float]) -> str:
    """One readable line about the times of one way."""
    p10, p50, p90 = (percentile(seconds, p) * 1e3 for p in (10, 50, 90))
    return f"{name:<18} p10 {p10:8.2f}   p50 {p50:8.2f}   p90 {p90:8.2f} ms   n {len(seconds)}"


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def end_on_signals() -> None:
    """Make SIGTERM unwind as Ctrl-C does, so that every process that was started ends; say so in a word."""

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            say("interrupted")
        else:
            sys.__excepthook__(kind, error, trace)

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    sys.excepthook = told


def at_least(least: int) -> Callable[[str], int]:
    """A count of the command line that is at least so large."""

    def count(text: str) -> int:
        if (found := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{found} is under {least}")
        return found

    return count


class Router:
    """llama.cpp's own router over some models, `llama-server --models-dir`, on a Unix socket.

    Args:
        models: the GGUF file by the name it gets.
        arguments: further arguments of llama-server, passed on to its children.
    """

    def __init__(self, models: Mapping[str, Path], arguments: Sequence[str]) -> None:
        self._models = models
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="kw-bench-")
        self._socket = Path(self._folder.name) / "router.sock"
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Router:
        folder = Path(self._folder.name)
        links = folder / "models"
        links.mkdir()
        for name, path in self._models.items():
            (links / f"{name}.gguf").symlink_to(path.absolute())
        binary = find_binary("llama-server")
        command = [str(binary), "--host", str(self._socket), "--models-dir", str(links)]
        command += ["--models-max", "1", "--no-ui", "--offline", *self._arguments]
        env = {**os.environ, **library_env(binary)}
        self._ending.callback(self._folder.cleanup)
        self._ending.enter_context(
            serving(command, env, folder / "log", lambda: is_healthy(self._socket))
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End the router and its children."""
        self._ending.close()

    def door(self, model: str) -> Endpoint:
        """A model through the router."""
        return Endpoint("http://router", model, "llama.cpp", socket_path=str(self._socket))

    def loads(self) -> int:
        """How many children it has started so far, by its log."""
        log = Path(self._folder.name) / "log"
        return log.read_text(errors="replace").count("spawning server instance with name=")

    def child(self, model: str) -> Endpoint:
        """The same model past the router, at its child's own port."""
        rows = blocking_request(self._socket, "GET", "/models")[1]["data"]
        row = next(row for row in rows if row["id"] == model)
        words: list[str] = row["status"]["args"]
        port = words[words.index("--port") + 1]
        return Endpoint(f"http://127.0.0.1:{port}", model, "openai")


@contextlib.contextmanager
def background_shim(config: Mapping[str, Any]) -> Iterator[Shim]:
    """A shim with a background keeper of its own, in private folders; the keeper ends with it."""
    with tempfile.TemporaryDirectory(prefix="kw-bench-") as name:
        folder = Path(name)
        places = {"KEEPWARM_LOCK_DIR": folder / "locks", "XDG_STATE_HOME": folder / "state"}
        before = {variable: os.environ.get(variable) for variable in places}
        os.environ.update({variable: str(place) for variable, place in places.items()})
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        shim = Shim(config, inline=False, runtime=runtime)
        try:
            yield shim
        finally:
            _end_keeper(shim)
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


def _end_keeper(shim: Shim) -> None:
    with contextlib.suppress(psutil.Error, KeepwarmError):
        keeper = psutil.Process(int(shim.status()["keeper"]["pid"]))
        keeper.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            keeper.wait(END_LIMIT_S)
        if keeper.is_running():
            keeper.kill()
    shim.close()
