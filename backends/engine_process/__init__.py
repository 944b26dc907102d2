"""An engine that is a process of ours, whatever program it is: its start, log, ceiling of bytes and end.

`process_engine` is the part of the engine protocol that such engines share; `process` is the process
itself, and `orphans` ends the processes that a dead keeper left.
"""
