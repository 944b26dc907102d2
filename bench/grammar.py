"""What a grammar takes while it is sampled by: private memory of a real llama-server, by vocabulary.

`python bench/grammar.py` loads models of zeros, asks each slot for text under a grammar, and reads the
process's private memory every few milliseconds. The last line is one JSON object.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import last_line

from backends.footprint.calibrate import process_bytes_by_kind, warm_engine
from backends.llama.binaries import find_binary
from backends.machine.unix_http import blocking_request
from budget.footprint import HOST, EngineArgs
from tools.shape_layouts import Shape
from tools.shapes import write

VOCABULARIES = (32_000, 128_000)
SLOTS = (1, 4)
ROUNDS = 4
GRAMMAR = "root ::= [a-z0-9 ]+"
ARGS = EngineArgs(1024, n_batch=64, n_ubatch=64, devices=(HOST,))


def generate(sock: Path, slot: int) -> None:
    """A few tokens under the grammar."""
    body = {"prompt": [5 + slot] * 10, "n_predict": 24, "id_slot": slot, "grammar": GRAMMAR}
    status, answer = blocking_request(sock, "POST", "/completion", body, timeout_s=60.0)
    if status != 200:
        raise SystemExit(f"the request was answered with {status}: {answer}")


def measured(model: Path, slots: int, folder: Path) -> tuple[int, int]:
    """Bytes that the process grew by at most, and by when all was done."""
    args = replace(ARGS, slots=slots, n_ctx=ARGS.n_ctx * slots)
    done, most = threading.Event(), 0
    with (
        warm_engine(find_binary("llama-server"), model, args, folder) as pid,
        ThreadPoolExecutor(slots) as pool,
    ):
        before = process_bytes_by_kind(pid)[0]

        def watch() -> None:
            nonlocal most
            while not done.wait(0.002):
                most = max(most, process_bytes_by_kind(pid)[0])

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(ROUNDS):
            list(pool.map(lambda slot: generate(folder / "s.sock", slot), range(slots)))
        done.set()
        watcher.join()
        return max(most - before, 0), max(process_bytes_by_kind(pid)[0] - before, 0)


def main() -> None:
    """Print bytes for each token of the vocabulary."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="kw-") as name:
        folder = Path(name)
        for vocabulary in VOCABULARIES:
            shape = Shape(f"v{vocabulary}", "llama", 2, 64, vocabulary, 128, 1, 1, matrix="F32")
            model = write(shape, folder)
            for slots in SLOTS:
                most, left = measured(model, slots, folder)
                print(
                    f"vocabulary {vocabulary:7}, {slots} slots: at most {most / vocabulary:6.1f} bytes "
                    f"a token while sampling, {left / vocabulary / slots:5.1f} a token and slot after"
                )
                figures[f"peak_bytes_a_token_{vocabulary}_{slots}"] = most / vocabulary
                figures[f"left_bytes_a_token_and_slot_{vocabulary}_{slots}"] = (
                    left / vocabulary / slots
                )
    last_line(figures)


if __name__ == "__main__":
    main()
