"""A model of your own under the budget: `python examples/own_model.py` needs no model file.

The class below runs in a worker process; this program is both its module and its caller.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shim import Shim

CONFIG = {
    "budget": {"device": "host", "limit": "500MB"},
    "models": {
        "tone": {
            "factory": "own_model:Tone",
            "cwd": str(Path(__file__).parent),
            "options": {"rate": 16_000},
            "bytes": "100MB",
        }
    },
}


class Tone:
    """A synthesiser, as small as one can be: it loads once, and is then called."""

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def __call__(self, hertz: float, seconds: float = 1.0) -> Iterator[dict[str, Any]]:
        """A tone in pieces of a tenth of a second."""
        for start in np.arange(0.0, seconds, 0.1):
            at = start + np.arange(self.rate // 10) / self.rate
            yield {"samples": np.sin(2 * np.pi * hertz * at).astype(np.float32), "start_s": start}


def main() -> None:
    """Call it, and stream it."""
    with Shim(CONFIG, share=True) as shim:
        reply = shim.call("tone", hertz=440.0)
        print(len(reply.value), "pieces; loaded in", round(reply.residency.load_s, 2), "s")
        for piece in shim.stream_call("tone", hertz=440.0, seconds=0.3):
            print(round(piece["start_s"], 1), piece["samples"].shape, piece["samples"].dtype)


if __name__ == "__main__":
    main()
