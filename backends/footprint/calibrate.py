"""Measures the bytes of an engine's process beyond its buffers on this machine, once, and keeps them.

Real llama-servers load small models of zeros, which differ in vocabulary, layers and slots. The bytes of
each process beyond the dry run's figure are fitted to `OverheadModel`. It takes seconds in all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from backends.engine_process.process import engine_environment
from backends.footprint.dry_run import measure
from backends.footprint.machine_overhead import store_overhead
from backends.footprint.shared_code import SharedCode
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.machine.files.folders import temporary_folder
from backends.machine.processes import pss_bytes
from backends.machine.unix_http import blocking_request, is_healthy
from backends.measure.calibration import small, write_calibration
from budget.errors import EndpointError, MeasurementFailed
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel

Say = Callable[[int, int], None]

_PROMPT_LIMIT_S: Final = 30.0
_UBATCH: Final = 64
_ARGS: Final = EngineArgs(n_ctx=1024, n_batch=_UBATCH, n_ubatch=_UBATCH, devices=(HOST,))
# Vocabulary, layers, slots: each coefficient has a pair that differs in it alone.
_POINTS: Final = ((2000, 2, 1), (2000, 26, 1), (64000, 2, 1), (2000, 2, 4), (64000, 2, 4))


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """One process: its model and arguments, its own bytes, and its share of mapped files."""

    n_vocab: int
    n_layers: int
    slots: int
    private_bytes: int
    file_bytes: int


def calibrate(folder: Path | None = None, *, say: Say = lambda _done, _all: None) -> OverheadModel:
    """Measure this machine and keep the result in `folder`, for the llama.cpp that is installed.

    A GPU's context is not measured: its default stays.

    Args:
        folder: where the result is kept; beside the cached footprints by default.
        say: called before each engine, with the numbers of engines measured so far and in all.

    Raises:
        ConfigError: llama-server is not installed.
        MeasurementFailed: an engine did not start, or the figures make no sense.
        OSError: the folder cannot be written.
    """
    server = find_binary("llama-server")
    points = []
    with temporary_folder("kw-") as made, SharedCode(server):
        for number, point in enumerate(_POINTS):
            say(number, len(_POINTS))
            points.append(_measure_point(made, server, *point))
    found = fit_overhead(points)
    store_overhead(found, folder)
    return found


def fit_overhead(points: Sequence[CalibrationPoint]) -> OverheadModel:
    """The coefficients that fit the points best; coefficients that were not varied keep their default.

    Raises:
        MeasurementFailed: a coefficient is negative or absurd, because another program took memory.
    """
    rows = [[1, p.n_layers, p.n_vocab, p.slots, p.slots * p.n_vocab] for p in points]
    wanted = [p.private_bytes for p in points]
    # Relative scales, because the units of the columns differ by orders of magnitude.
    scale = np.array([1.0, 10.0, 1e4, 1.0, 1e4])
    solution, *_ = np.linalg.lstsq(np.array(rows) / scale, np.array(wanted, float), rcond=None)
    base, layer, token, slot, candidate = (solution / scale).tolist()
    if not (0 < base < 1 << 28 and token > 0):
        raise MeasurementFailed(
            f"an engine's own memory was fitted as {base:.0f} bytes and {token:.1f} for each token.",
            hint="Measure again while the machine is quiet.",
            points=[asdict(point) for point in points],
        )
    return replace(
        DEFAULT_OVERHEAD,
        base_bytes=round(base),
        layer_bytes=max(round(layer), 0),
        token_bytes=round(token),
        slot_bytes=max(round(slot), 0),
        candidate_bytes=max(round(candidate), 0),
        code_bytes=round(sum(p.file_bytes for p in points) / len(points)),
    )


def _measure_point(
    folder: Path, server: Path, n_vocab: int, n_layers: int, slots: int
) -> CalibrationPoint:
    model = folder / f"{n_vocab}-{n_layers}.gguf"
    if not model.exists():
        write_calibration(small(n_vocab, n_layers), model)
    args = replace(_ARGS, slots=slots)
    buffers = measure(model, args).devices[HOST].total_bytes
    with warm_engine(server, model, args, folder) as pid:
        private, files = process_bytes_by_kind(pid)
    return CalibrationPoint(n_vocab, n_layers, slots, private - buffers, files)


def process_bytes_by_kind(pid: int) -> tuple[int, int]:
    """A process's share of anonymous memory and of mapped files, in bytes."""
    return pss_bytes([pid], "Pss_Anon") or 0, pss_bytes([pid], "Pss_File") or 0


@contextlib.contextmanager
def warm_engine(server: Path, model: Path, args: EngineArgs, folder: Path) -> Iterator[int]:
    """A real llama-server that has evaluated a prompt in each slot; yields its process id.

    Its socket and its `log` lie in `folder`, a private one with a short path.

    Raises:
        MeasurementFailed: it did not start, or did not answer.
    """
    sock = folder / "s.sock"
    sock.unlink(missing_ok=True)
    command = server_argv(server, args, LaunchSettings(model, "m", sock, folder, 1, 1))
    env = engine_environment(folder, library_env(server))
    with serving(command, env, folder / "log", lambda: is_healthy(sock)) as running:
        for slot in range(args.slots):
            _prompt(sock, slot, args)
        yield running.pid


def _prompt(sock: Path, slot: int, args: EngineArgs) -> None:
    """Touch every buffer: a prompt longer than a micro-batch, or a whole one to be embedded."""
    path = "/embeddings" if args.embeddings else "/completion"
    body: dict[str, Any] = {"content": [5] * (args.n_ubatch - 2)}
    if not args.embeddings:
        body = {"prompt": [5] * (2 * args.n_ubatch), "n_predict": 1, "id_slot": slot}
    try:
        status, answer = blocking_request(sock, "POST", path, body, timeout_s=_PROMPT_LIMIT_S)
    except (OSError, EndpointError) as error:
        raise MeasurementFailed(f"the calibration's prompt was not answered: {error}.") from error
    if status != 200:
        raise MeasurementFailed(f"the calibration's prompt was answered with {status}: {answer}.")
