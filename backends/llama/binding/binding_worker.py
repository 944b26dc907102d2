"""The process of a worker over llama-cpp-python: `python -m ... --api-key-file GATE ORDER`.

GATE is a file to read to its end before the model is loaded. ORDER is JSON: `path`, `model_id`, `socket`,
`threads`, `args` (the engine's arguments, as the dry measurement takes them).
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from backends.footprint.probe.native import ProbeError
from backends.footprint.probe.parameters import binding
from backends.llama.binding.answering import Answering, Slot
from backends.llama.binding.http_door import Door
from backends.llama.binding.native_model import NativeModel

_DEBUG = 1


def _log(library: Any) -> Any:
    """Write llama.cpp's log, whose lines tell what was allocated; the callback has to stay alive."""

    def write(level: int, text: bytes, _: Any) -> None:
        if level != _DEBUG:
            sys.stderr.buffer.write(text)
            sys.stderr.buffer.flush()

    callback = library.llama_log_callback(write)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def main() -> None:
    """Wait for the gate, load, and answer until the process is ended."""
    _, gate, order = sys.argv[1:]
    spec = json.loads(order)
    library = binding()
    callback = _log(library)
    with Path(gate).open("rb") as pipe:
        pipe.read()
    try:
        model = NativeModel(library, spec["path"], spec["args"], spec["threads"])
    except (RuntimeError, ProbeError) as error:
        sys.exit(f"worker: {error}")
    slot = Slot()
    embeds = spec["args"]["embeddings"]
    door = Door(spec["socket"], spec["model_id"], Answering(model, slot), slot, embeds=embeds)
    sys.stderr.write("model loaded\n")
    sys.stderr.flush()
    door.work()
    del callback


if __name__ == "__main__":
    main()
