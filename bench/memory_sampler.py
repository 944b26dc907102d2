"""Measure a keeper's engines from outside, every 50 ms: `python bench/memory_sampler.py RUNTIME`.

The same program that watches `keepwarm demo`; `keepwarm ps --json` names the runtime folder.
Ends with its standard input (Ctrl-D).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.measure.sampler import main

if __name__ == "__main__":
    main()
