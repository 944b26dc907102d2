"""The closed form beside llama.cpp's dry run: architectures x splits x contexts x KV types x slots.

`python bench/accuracy.py [--quick] [--no-rpc | --spread] [--type T] [NAME ...]` writes sparse files of
real models' shapes, measures each on an RPC device on loopback in two processes, and prints a row per
placement with the difference in percent of the dry run, by part and in total (host and device
together). With `--spread` layers lie on two RPC devices, in two proportions. It ends by itself: files
that `--limit` seconds leave no time for are said. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.footprint.dry_run import measure_many
from backends.gguf.header import read_header
from budget.errors import ConfigError, KeepwarmError
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.arguments import check_args
from budget.memory.closed_form import estimate
from budget.memory.shape import ModelShape
from tools.rpc import rpc_server
from tools.shapes import SHAPES, quantized, write

DEVICES = ("RPC0", "RPC1")
FIRST_SHARES = (0.5, 0.67)
"""Of the layers, on the first of two devices."""
CONTEXTS = (2048, 32768)
KV_TYPES = ("f16", "q8_0")
SLOTS = (1, 4)
PARTS = ("weights", "kv", "compute", "total")
PROCESSES = 2
FILE_LIMIT_S = 200.0


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


def total(parts: dict[str, Footprint]) -> Footprint:
    """The sum over devices."""
    return sum(parts.values(), Footprint())


def places(shape: ModelShape, servers: Sequence[str]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """n_gpu_layers and the layers of each device: on the host, one device, or spread over two."""
    some = (shape.n_layers // 2, shape.n_layers + 1)
    if len(servers) < 2:
        yield from ((layers, ()) for layers in ((0, *some) if servers else (0,)))
        return
    for layers, share in itertools.product(some, FIRST_SHARES):
        first = round(layers * share)
        yield layers, (first, layers - first)


def placements(shape: ModelShape, servers: Sequence[str], *, quick: bool) -> Iterator[EngineArgs]:
    """Every placement of one model that its context allows."""
    contexts, slots = (CONTEXTS[:1], SLOTS[:1]) if quick else (CONTEXTS, SLOTS)
    found = [*places(shape, servers)]
    for (ngl, split), context, kv, n in itertools.product(found, contexts, KV_TYPES, slots):
        longest = shape.context_length * n or context
        args = EngineArgs(
            n_ctx=min(context, longest),
            slots=n,
            kv_type_k=kv,
            kv_type_v=kv,
            n_gpu_layers=ngl,
            embeddings=not shape.causal,
            rpc=tuple(servers) if ngl else (),
            devices=DEVICES[: len(servers)] if ngl else (HOST,),
            tensor_split=split,
        )
        if context > longest and context != CONTEXTS[0]:
            continue
        with contextlib.suppress(ConfigError):  # KV types that the heads do not allow
            check_args(args, shape)
            yield args


def rows_of(path: Path, servers: Sequence[str], *, quick: bool) -> list[Row]:
    """The placements of one file, measured in one process."""
    shape = read_header(path).shape()
    many = list(placements(shape, servers, quick=quick))
    found = []
    for args, run in zip(many, measure_many(path, many, timeout_s=FILE_LIMIT_S), strict=True):
        if run is not None:
            closed = estimate(shape, args, args.layer_devices)
            found.append(
                Row(path.stem, shape.architecture, args, total(closed), total(run.devices))
            )
    return found


def show(row: Row) -> None:
    """One line of the table."""
    a = row.args
    split = "+".join(map(str, a.tensor_split)) or str(a.n_gpu_layers)
    shares = " ".join(f"{row.difference_percent(part):+8.3f}" for part in PARTS)
    size = row.measured.total_bytes / (1 << 20)
    print(
        f"{row.name:24} {row.architecture:10} ngl {split:>5} ctx {a.n_ctx:6} "
        f"{a.kv_type_k:5} slots {a.slots} {size:10.1f} MiB {shares}",
        flush=True,
    )


def worst_of(rows: Sequence[Row]) -> Row:
    """The row whose total differs most."""
    return max(rows, key=lambda row: abs(row.difference_percent("total")))


def show_worst(rows: Sequence[Row]) -> None:
    """The worst row of each architecture."""
    by_architecture: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_architecture[row.architecture].append(row)
    print("worst total by architecture:")
    for _, group in sorted(by_architecture.items()):
        show(worst_of(group))


def summary(rows: Sequence[Row], failed: Sequence[str], seconds: float) -> dict[str, object]:
    """The figures of the last line."""
    found: dict[str, object] = {"rows": len(rows), "failed": list(failed)}
    if rows:
        worst = worst_of(rows)
        found |= {
            "within_1_percent": sum(abs(r.difference_percent("total")) <= 1.0 for r in rows),
            "worst_percent": round(worst.difference_percent("total"), 4),
            "worst": f"{worst.name} ngl {worst.args.n_gpu_layers} ctx {worst.args.n_ctx} "
            f"{worst.args.kv_type_k} slots {worst.args.slots}",
            "architectures": len({row.architecture for row in rows}),
        }
    return found | {"seconds": round(seconds, 1)}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=sorted(SHAPES))
    parser.add_argument("--quick", action="store_true", help="one context and one slot only")
    parser.add_argument("--no-rpc", action="store_true", help="the host alone")
    parser.add_argument("--spread", action="store_true", help="over two RPC devices")
    parser.add_argument("--type", default="Q4_K_M", help="F16, Q8_0, Q4_0, Q4_K_M, ...")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds to start files in")
    found = parser.parse_args()
    unknown = sorted(set(found.names) - set(SHAPES))
    if unknown:
        parser.error(f"no shape is called {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    return found


def main() -> None:
    """Print the table."""
    chosen = options()
    rows: list[Row] = []
    failed: list[str] = []
    start_s = time.monotonic()
    print(f"{'':83} difference in %: {' '.join(f'{p:>8}' for p in PARTS)}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        count = 0 if chosen.no_rpc else 2 if chosen.spread else 1
        servers = [stack.enter_context(rpc_server()) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(PROCESSES))

        def measured(name: str) -> list[Row]:
            if time.monotonic() - start_s > chosen.limit:
                raise TimeoutError(f"no time left within {chosen.limit:g} s")
            path = write(quantized(SHAPES[name], chosen.type), folder)
            try:
                return rows_of(path, servers, quick=chosen.quick)
            finally:
                path.unlink()

        waiting: list[tuple[str, Future[list[Row]]]]
        waiting = [(name, pool.submit(measured, name)) for name in chosen.names]
        for name, future in waiting:
            try:
                found = future.result()
            except (KeepwarmError, TimeoutError) as error:
                failed.append(f"{name}: {error}")
                print(failed[-1], flush=True)
                continue
            rows += found
            for row in found:
                show(row)
    if rows:
        show_worst(rows)
    print(json.dumps(summary(rows, failed, time.monotonic() - start_s)), flush=True)


if __name__ == "__main__":
    main()
