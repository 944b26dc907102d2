"""The command line: `keepwarm`. Commands are imported when they are used, so that it starts fast.

Exit codes: 0 done, 1 a bug of ours, 2 the caller's mistake (a usage error, too), 3 too much to do now,
4 an engine, an endpoint, a file or the keeper failed, 130 interrupted.
"""

from shim.cli.root import main

__all__ = ["main"]
