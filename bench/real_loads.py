"""Real loads beside the dry run: what llama-server logs of its buffers, and its process's PSS.

`python bench/real_loads.py [FOLDER]` loads each GGUF of a folder (`models/demo` by default, made by
`make models`) with a micro-batch of 64, evaluates a prompt longer than that, and compares. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.footprint.calibrate import process_bytes_by_kind, warm_engine
from backends.footprint.dry_run import measure
from backends.footprint.inspect import Inspector
from backends.footprint.shared_code import SharedCode
from backends.gguf.header import read_header
from backends.llama.binaries import find_binary
from budget.footprint import HOST, EngineArgs

FOLDER = Path(__file__).resolve().parents[1] / "models" / "demo"
BUFFER_LINE = re.compile(r"(?:model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")
COMPUTE_LINE = re.compile(r"\bcompute buffer size =")
ROUNDING_MIB = 0.005


@dataclass(frozen=True)
class Load:
    """One real load: bytes logged, dry-run, measured and booked."""

    name: str
    logged_mib: float
    log_lines: int
    dry_mib: float
    pss_bytes: int
    booked_bytes: int

    @property
    def log_agrees(self) -> bool:
        """Whether the log's sum is the dry run's, within its rounding to two decimals."""
        return abs(self.logged_mib - self.dry_mib) <= ROUNDING_MIB * (self.log_lines + 1)


def logged(log: str) -> tuple[float, int]:
    """MiB of all buffers of a start, and how many lines; of repeated compute lines the last."""
    lines = [line for line in log.splitlines() if BUFFER_LINE.search(line)]
    compute = [line for line in lines if COMPUTE_LINE.search(line)]
    kept = [line for line in lines if not COMPUTE_LINE.search(line)] + compute[-1:]
    return sum(float(BUFFER_LINE.findall(line)[0]) for line in kept), len(kept)


def load(path: Path) -> Load:
    """Load one model for real."""
    header = read_header(path)
    embeds = not header.shape().causal
    args = EngineArgs(
        n_ctx=min(2048, header.shape().context_length),
        n_batch=64,
        n_ubatch=64,
        embeddings=embeds,
        devices=(HOST,),
    )
    run = measure(path, args)
    booked = Inspector().placement(header, args, HOST, "dry-run").total_bytes
    with tempfile.TemporaryDirectory(prefix="kw-") as name:
        with warm_engine(find_binary("llama-server"), path, args, Path(name)) as pid:
            pss = sum(process_bytes_by_kind(pid))
        text = (Path(name) / "log").read_text(errors="replace")
    total, lines = logged(text)
    dry = sum(r.weights_bytes + r.kv_bytes + r.compute_bytes for r in run.buffers)
    return Load(path.stem, total, lines, (dry + run.output_bytes) / (1 << 20), pss, booked)


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    paths = sorted(parser.parse_args().folder.glob("*.gguf"))
    if not paths:
        parser.error("there are no models; `make models` makes them")
    with SharedCode(find_binary("llama-server")):
        loads = [load(path) for path in paths]
    for one in loads:
        print(
            f"{one.name:30} log {one.logged_mib:9.2f} MiB  dry run {one.dry_mib:9.2f} MiB  "
            f"PSS {one.pss_bytes / 1e6:8.2f} MB  booked {one.booked_bytes / 1e6:8.2f} MB  "
            f"{one.pss_bytes / one.booked_bytes:.3f}"
        )
    ratios = [one.pss_bytes / one.booked_bytes for one in loads]
    figures = {
        "models": len(loads),
        "log_agrees": sum(one.log_agrees for one in loads),
        "pss_over_booked_least": round(min(ratios), 4),
        "pss_over_booked_most": round(max(ratios), 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
