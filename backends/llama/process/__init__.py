"""One llama-server process: its start, its load, its ceiling of bytes, its end, and the clean-up after it.

`process` is the process itself; `start_failures` makes the error when it does not become ready.
"""
