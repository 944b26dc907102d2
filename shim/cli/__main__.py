"""`python -m shim.cli`: the same as `keepwarm`."""

from __future__ import annotations

from shim.cli.root import main

if __name__ == "__main__":
    main()
