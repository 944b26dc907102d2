"""The command line: `keepwarm`. Commands are imported when they are used, so that it starts fast.

Exit codes: 0 done, 1 a bug of ours, 2 the caller's mistake (a usage error, too), 3 too much to do now,
4 an engine, an endpoint, a file or the keeper failed, or stdout cannot be written, 130 interrupted,
141 the reader of stdout ended.
"""

from typing import TYPE_CHECKING

from shim.lazy_names import lazy_names

if TYPE_CHECKING:
    from shim.cli.root import main

__getattr__ = lazy_names("shim.cli", {"shim.cli.root": "main"})

__all__ = ["main"]
