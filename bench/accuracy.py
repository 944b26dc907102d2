"""The closed form beside llama.cpp's dry run: architectures x splits x contexts x KV types x slots.

`python bench/accuracy.py [--quick] [--no-rpc] [NAME ...]` writes sparse files of real models'
shapes, measures each on an RPC device on loopback, and prints a row per placement with the
difference in percent of the dry run, by part and in total. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.footprint.dry_run import measure
from backends.gguf.header import read_header
from backends.llama.binaries import find_binary, library_env
from budget.errors import KeepwarmError
from budget.estimate.closed_form import estimate
from budget.footprint import HOST, EngineArgs, Footprint
from tools.shapes import SHAPES, write

DEVICE = "RPC0"
CONTEXTS = (2048, 32768)
KV_TYPES = ("f16", "q8_0")
SLOTS = (1, 4)
PARTS = ("weights", "kv", "compute", "total")


@dataclass(frozen=True)
class Row:
    """One placement: bytes by part of both sources, over host and device together."""

    name: str
    architecture: str
    args: EngineArgs
    closed: Footprint
    measured: Footprint

    def difference_percent(self, part: str) -> float:
        """Closed form over dry run, in percent of the dry run's part."""
        measured = getattr(self.measured, f"{part}_bytes")
        closed = getattr(self.closed, f"{part}_bytes")
        return 100.0 * (closed - measured) / measured if measured else 100.0 * bool(closed)


@contextlib.contextmanager
def rpc_server() -> Iterator[str]:
    """An RPC server of this build on a free loopback port; yields `host:port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = find_binary("ggml-rpc-server")
    process = subprocess.Popen(
        [binary, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **library_env(binary)},
    )
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("ggml-rpc-server did not start")


def total(parts: dict[str, Footprint]) -> Footprint:
    """The sum over devices."""
    return sum(parts.values(), Footprint())


def rows_of(path: Path, endpoint: str | None, *, quick: bool) -> Iterator[Row]:
    """Every placement of one file."""
    shape = read_header(path).shape()
    layers = (0, shape.n_layers // 2, shape.n_layers + 1) if endpoint else (0,)
    contexts, slots = (CONTEXTS[:1], SLOTS[:1]) if quick else (CONTEXTS, SLOTS)
    for ngl, context, kv, n in itertools.product(layers, contexts, KV_TYPES, slots):
        if shape.context_length and context // n > shape.context_length:
            continue
        args = EngineArgs(
            n_ctx=context,
            slots=n,
            kv_type_k=kv,
            kv_type_v=kv,
            n_gpu_layers=ngl,
            rpc=(endpoint,) if endpoint and ngl else (),
            devices=(DEVICE,) if ngl else (HOST,),
        )
        closed = estimate(shape, args, [DEVICE] if ngl else [])
        measured = measure(path, args).devices
        yield Row(path.stem, shape.architecture, args, total(closed), total(measured))


def show(row: Row) -> None:
    """One line of the table."""
    a = row.args
    shares = " ".join(f"{row.difference_percent(part):+8.3f}" for part in PARTS)
    size = row.measured.total_bytes / (1 << 20)
    print(
        f"{row.name:22} {row.architecture:10} ngl {a.n_gpu_layers:3} ctx {a.n_ctx:6} "
        f"{a.kv_type_k:5} slots {a.slots} {size:10.1f} MiB {shares}",
        flush=True,
    )


def summary(rows: Sequence[Row], failed: Sequence[str]) -> dict[str, object]:
    """The figures of the last line."""
    worst = max(rows, key=lambda row: abs(row.difference_percent("total")))
    return {
        "rows": len(rows),
        "failed": list(failed),
        "within_1_percent": sum(abs(r.difference_percent("total")) <= 1.0 for r in rows),
        "worst_percent": round(worst.difference_percent("total"), 4),
        "worst": f"{worst.name} ngl {worst.args.n_gpu_layers} ctx {worst.args.n_ctx} "
        f"{worst.args.kv_type_k} slots {worst.args.slots}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(SHAPES))
    parser.add_argument("--quick", action="store_true", help="one context and one slot only")
    parser.add_argument("--no-rpc", action="store_true", help="the host alone")
    options = parser.parse_args()
    rows: list[Row] = []
    failed: list[str] = []
    print(f"{'':79} difference in %: {' '.join(f'{p:>8}' for p in PARTS)}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint = None if options.no_rpc else stack.enter_context(rpc_server())
        for name in options.names:
            try:
                for row in rows_of(write(SHAPES[name], folder), endpoint, quick=options.quick):
                    rows.append(row)
                    show(row)
            except KeepwarmError as error:
                failed.append(f"{name}: {error}")
                print(failed[-1])
    print(json.dumps(summary(rows, failed)))


if __name__ == "__main__":
    main()
