"""Make the demo's models: `python tools/make_models.py FOLDER [--tiny]`.

Their text is noise, but everything else is real: architectures, tokenizers, quantizations, and files
big enough that loading them costs something. `harness/demo/models` makes them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python

if __name__ == "__main__":
    by_own_python()

from harness.demo.models import make_models
from shim.cli.console.output import print_table, size


def main() -> None:
    """Make the models that the command line asks for and print where they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tiny", action="store_true", help="1 to 3 MB each, for tests")
    arguments = parser.parse_args()
    models = make_models(
        arguments.directory, tiny=arguments.tiny, progress=lambda line: print(line, flush=True)
    )
    rows = [(name, path, size(path.stat().st_size)) for name, path in models.items()]
    print_table(("model", "file", "bytes"), rows, right=("bytes",))


if __name__ == "__main__":
    main()
