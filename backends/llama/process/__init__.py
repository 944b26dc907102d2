"""One llama-server process: started, watched while it loads, held to its ceiling, ended, swept up.

`process` is the process itself; `start_failures` says what it means when it does not become ready.
"""
