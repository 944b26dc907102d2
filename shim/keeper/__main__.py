"""`python -m shim.keeper RUNTIME READY_FD`: run a keeper; `shim.wire.launch` calls this."""

from __future__ import annotations

import sys

from shim.keeper.process.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
