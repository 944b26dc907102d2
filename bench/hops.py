"""How many functions of ours a warm `chat()` passes in the caller's process: `python bench/hops.py`.

A function that is called twice counts once. Of five calls the one with the fewest counts, because a busy
machine adds waits. The last line of the output is `{"functions", "files"}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from _common import REPOSITORY, background_shim, end_on_signals, say
from overhead import MODEL, OPTIONS, PROMPT, config, tiny_model

from shim import Shim

PACKAGES = tuple(
    f"{Path(import_module(name).__file__ or '').parent}/"
    for name in ("shim", "backends", "budget", "traces")
)


def passed(shim: Shim) -> Counter[CodeType]:
    """Our functions in one warm call, and how often each is called."""
    seen: Counter[CodeType] = Counter()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            seen[frame.f_code] += 1

    sys.setprofile(watch)
    try:
        shim.chat(MODEL, PROMPT, **OPTIONS)
    finally:
        sys.setprofile(None)
    return seen


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="also print the functions")
    options = parser.parse_args()
    end_on_signals()
    with background_shim(config(tiny_model())) as shim:
        for _ in range(3):
            shim.chat(MODEL, PROMPT, **OPTIONS)
        seen = min((passed(shim) for _ in range(5)), key=len)
    if options.list:
        for code, times in seen.items():
            say(
                f"{Path(code.co_filename).resolve().relative_to(REPOSITORY)}:{code.co_qualname} {times}"
            )
    print(json.dumps({"functions": len(seen), "files": len({c.co_filename for c in seen})}))


if __name__ == "__main__":
    main()
