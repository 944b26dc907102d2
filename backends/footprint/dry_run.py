"""llama.cpp's own dry measurement (`no_alloc`) of one model with one engine's arguments.

It is exact, byte for byte, over all buffer types: it equals the log of `llama-server -v` after a real load.
It runs in a short process of its own, because ggml aborts its process on a wrong argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from backends.footprint.probe import native as probe
from backends.foreign.foreign_json import parse_json
from backends.llama.rpc.connections import free_within
from backends.llama.rpc.device_names import names_of, servers_of
from backends.machine.children import ask_child
from backends.machine.environment import child_environment
from backends.machine.gpus import gpu_environment
from budget.errors import BadModelFile, ConfigError, KeepwarmError, MeasurementFailed
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.arguments import check_args, effective, outputs_per_slot, pad
from budget.memory.graph import NORM_FIRST
from budget.memory.split import device_of_layers

DEFAULT_TIMEOUT_S: Final = 60.0
_TAIL_LINES: Final = 12
_TAIL_LINE_CHARACTERS: Final = 400
_MOST_BYTES: Final = 1 << 60
_BUSY_S: Final = 2.0
"""How long to wait for an RPC server that serves another client. A dry run is shorter than this."""
_ONE_AT_A_TIME: Final = threading.Lock()
_PROBE: Final = ("-m", "backends.footprint.probe.measure")
# The child has to find the packages in the same place as this process.
_ROOT: Final = str(Path(probe.__file__).parents[2])

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BufferBytes:
    """The bytes of one ggml buffer type (`CPU`, `CPU_REPACK`, `RPC0[...]`) on one device."""

    buffer_type: str
    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """The allocations of llama.cpp for one model and one set of arguments.

    `output_bytes` is the host's buffer of output rows as it is logged at the start. `output_max_bytes` is
    its largest size, because the buffer of an embedding engine grows to its longest batch. `n_ctx` is the
    context after llama.cpp's own padding; `seconds` is the duration of the measurement.
    """

    buffers: tuple[BufferBytes, ...]
    output_bytes: int
    output_max_bytes: int
    n_layers: int
    n_ctx: int
    seconds: float

    @property
    def devices(self) -> dict[str, Footprint]:
        """The footprint of each device over all of its buffer types, without engine overhead.

        The host's output buffer counts as compute, at its largest.
        """
        found = {HOST: Footprint(compute_bytes=self.output_max_bytes)}
        for row in self.buffers:
            part = Footprint(row.weights_bytes, row.kv_bytes, row.compute_bytes)
            found[row.device] = found.get(row.device, Footprint()) + part
        return found

    def to_json(self) -> dict[str, Any]:
        """The measurement as JSON-serialisable data; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DryRun:
        """The measurement that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: the data is something else.
        """
        rows = tuple(
            BufferBytes(
                str(row["buffer_type"]),
                str(row["device"]),
                int(row["weights_bytes"]),
                int(row["kv_bytes"]),
                int(row["compute_bytes"]),
            )
            for row in data["buffers"]
        )
        return cls(
            rows,
            int(data["output_bytes"]),
            int(data["output_max_bytes"]),
            int(data["n_layers"]),
            int(data["n_ctx"]),
            float(data["seconds"]),
        )


def measure(path: str | Path, args: EngineArgs, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> DryRun:
    """Measure a model file in a process of its own, so that a crash does not reach the caller.

    Raises:
        ConfigError: the arguments are impossible, or name a device that does not exist.
        BadModelFile: llama.cpp refuses the file. Facts: `file`, `log_tail`.
        MeasurementFailed: the process crashed or took too long. Facts: `file`, `log_tail`.
    """
    check_args(args)
    started = time.monotonic()
    request = json.dumps({"path": str(path), "args": wire_args(args)})
    with _served(path, servers_of(args.rpc)):
        answer = _ask(str(path), request, timeout_s, args.devices)
    seconds = time.monotonic() - started
    return _read(path, lambda: _dry_run(answer, args, seconds))


def measure_many(
    path: str | Path, many: Sequence[EngineArgs], *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[DryRun | None]:
    """Measure one file with many arguments in one process: for tables and fits, not for admission.

    Arguments that llama.cpp refuses give `None`. Neighbours with equal n_gpu_layers share a load.

    Raises:
        as `measure`; a crash or a time-out ends them all.
    """
    for args in many:
        check_args(args)
        request = json.dumps({"path": str(path), "many": [wire_args(args) for args in many]})
    started = time.monotonic()
    named = [name for args in many for name in args.devices]
    with _served(path, servers_of([server for args in many for server in args.rpc])):
        answers = _ask(str(path), request, timeout_s, named)
    each_s = (time.monotonic() - started) / max(len(many), 1)
    return _read(
        path,
        lambda: [
            None if "error" in answer else _dry_run(answer, args, each_s)
            for answer, args in zip(answers, many, strict=True)
        ],
    )


@contextlib.contextmanager
def _served(path: str | Path, endpoints: Sequence[str]) -> Iterator[None]:
    """Hold RPC servers for one question: no other thread of this process may connect to one meanwhile.

    Raises:
        MeasurementFailed: one of them serves another client. Facts: `busy`.
    """
    if not endpoints:
        yield
        return
    with _ONE_AT_A_TIME:
        busy = [endpoint for endpoint in endpoints if not free_within(endpoint, _BUSY_S)]
        if busy:
            raise MeasurementFailed(
                f"the dry measurement of {path} found {', '.join(busy)} busy with another client.",
                hint="It serves one at a time: measure again when that one has left.",
                file=str(path),
                busy=busy,
            )
        yield


def _dry_run(answer: Mapping[str, Any], args: EngineArgs, seconds: float) -> DryRun:
    names = names_of(args)
    over = _counted_twice(answer, args)
    rows = tuple(
        BufferBytes(
            str(row["buffer_type"]),
            HOST if row["device"] is None else names.ours(row["device"]),
            _count(row["model"]),
            _count(row["context"]),
            _count(row["compute"] - over.get(row["device"], 0)),
        )
        for row in answer["buffers"]
    )
    row_bytes = _count(answer["output_row_bytes"])
    most_rows = max(
        args.slots * outputs_per_slot(args), _count(answer["n_batch"]) if args.embeddings else 0
    )
    return DryRun(
        rows,
        row_bytes * args.slots,
        row_bytes * most_rows,
        _count(answer["n_layers"]),
        _count(answer["n_ctx"]),
        seconds,
    )


def _read(path: str | Path, reading: Callable[[], _T]) -> _T:
    """The child's answer, as `reading` parses it.

    Raises:
        MeasurementFailed: the answer is malformed.
    """
    try:
        return reading()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MeasurementFailed(
            f"the dry measurement of {path} gave no figures ({type(error).__name__}: {error}).",
            hint="This llama.cpp differs from the one expected.",
            file=str(path),
        ) from error


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST_BYTES:
        raise ValueError(f"{value!r:.80} is no count")
    return value


def _counted_twice(answer: Mapping[str, Any], args: EngineArgs) -> dict[str, int]:
    """Compute bytes, by llama.cpp's device, that the dry measurement has in excess of a real load.

    With every layer on several devices, a layer's first norm is put on that layer's device
    (`llama-context.cpp`, `graph_get_cb`). The dry measurement forgets it (`ggml-backend.cpp`:
    `ggml_backend_sched_reserve_size` resets the assignment). So the norm stays on the device before it,
    and is copied across as well, once for each copy of the scheduler's inputs.
    """
    devices = args.layer_devices
    everywhere = args.n_gpu_layers > answer["n_layers"]
    if len(devices) < 2 or not everywhere or answer["architecture"] not in NORM_FIRST:
        return {}
    tokens = pad(effective(args).n_tokens, args.slots)
    crossing = answer["copies"] * 4 * answer["n_embd"] * tokens
    # A device with the output layer alone gets no such norm.
    n_layers = answer["n_layers"]
    places = device_of_layers(args.tensor_split, args.n_gpu_layers, n_layers)
    computing = set(places[: n_layers - answer["n_predicting"]].tolist())
    names = names_of(args).llama(devices)
    return {name: crossing for number, name in enumerate(names) if number and number in computing}


def wire_args(args: EngineArgs) -> dict[str, Any]:
    """The arguments as llama.cpp's processes of ours take them, with llama.cpp's names of devices."""
    devices = names_of(args).llama(args.devices)
    return {
        **asdict(args),
        "devices": devices,
        "rpc": servers_of(args.rpc),
        "outputs_per_slot": outputs_per_slot(args),
    }


def measure_projector(
    path: str | Path, args: EngineArgs, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> dict[str, int]:
    """Bytes by device of a multimodal projector in an engine with these arguments.

    Weights and the compute buffer of its largest image. llama-server takes the first GPU or RPC
    device for it, whatever `--device` says.

    Raises:
        BadModelFile, MeasurementFailed: as `measure`.
    """
    request = {
        "path": str(path),
        "projector": str(path),
        "rpc": servers_of(args.rpc),
        "use_gpu": any(name != HOST for name in args.devices),
        "flash_attention": args.flash_attention,
    }
    with _served(path, servers_of(args.rpc)):
        answer = _ask(str(path), json.dumps(request), timeout_s, args.devices)
    return _read(path, lambda: _by_device(answer, args))


def _by_device(answer: Any, args: EngineArgs) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in answer:
        device = HOST if row["device"] is None else names_of(args).ours(row["device"])
        found[device] = found.get(device, 0) + _count(row["n_bytes"])
    return found


def _environment(devices: Sequence[str]) -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    path = f"{_ROOT}{os.pathsep}{inherited}" if inherited else _ROOT
    return child_environment({"PYTHONPATH": path, **gpu_environment(devices)})


def _ask(path: str, request: str, timeout_s: float, devices: Sequence[str] = ()) -> Any:
    command = [sys.executable, "-P", *_PROBE]
    done = ask_child(command, _environment(devices), timeout_s, given=request.encode())
    if done.cut:
        how = f"took more than {timeout_s:g} s" if done.cut == "time" else "said too much"
        raise MeasurementFailed(
            f"the dry measurement of {path} {how}.",
            hint="Check that the file's disk and any RPC server answer.",
            file=path,
            log_tail=_tail(done.log),
        )
    if done.code:
        _refuse(path, done.code, done.log)
    try:
        return parse_json(done.out.splitlines()[-1])
    except (ValueError, IndexError):
        _refuse(path, done.code, done.log)


def _tail(log: str) -> list[Any]:
    lines = [line for line in log.splitlines() if line.strip(" .")][-_TAIL_LINES:]
    return [line[:_TAIL_LINE_CHARACTERS] for line in lines]


def _refuse(path: str, code: int, log: str) -> NoReturn:
    tail = _tail(log)
    reason = next((str(line)[7:] for line in reversed(tail) if line.startswith("probe: ")), "")
    kinds: dict[int, tuple[type[KeepwarmError], str]] = {
        probe.EXIT_LOAD: (BadModelFile, "Fetch the file again, or check its architecture."),
        probe.EXIT_DEVICE: (ConfigError, "Check `devices` and the RPC servers' addresses."),
        probe.EXIT_CONTEXT: (MeasurementFailed, "Check context, slots and KV types."),
        probe.EXIT_UNSUPPORTED: (MeasurementFailed, "Use the closed form on this machine."),
        probe.EXIT_MISMATCH: (MeasurementFailed, "This llama.cpp differs from the one expected."),
    }
    kind, hint = kinds.get(code, (MeasurementFailed, "The log's last lines are in `log_tail`."))
    how = reason or (f"signal {-code}" if code < 0 else f"exit status {code}")
    last = next((str(line).strip() for line in reversed(tail) if "rror" in line), "")
    detail = f": {last}" if last else ""
    raise kind(
        f"the dry measurement of {path} failed ({how}){detail}.",
        hint=hint,
        file=path,
        offset=0,
        log_tail=tail,
    )
