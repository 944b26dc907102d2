"""How long the keeper waits for what it cannot trust: engines, disks, and its own clearing up.

Read as `limits.STOP_S` where a wait begins, so that every bound of the shell is found here. What one
answer may cost its caller is another matter (`backends.openai.connections.bounds`), and so is how long a
client waits for a keeper that says nothing (`shim.wire.silence`).
"""

from __future__ import annotations

STOP_S = 10.0
"""An engine gets this to end beyond its grace, and a cancelled piece of its work to notice. Then it is
killed, and its bytes count as free."""
PREPARE_S = 60.0
"""Until an engine's process is there, ready to load."""
SILENT_START_S = 300.0
"""A start that reports no progress for so long hangs: engines report several times a second, and give
up by themselves after `stall_timeout`."""
SILENT_STAGE_S = 60.0
"""A staging that reads nothing for so long is given up."""

SAVE_S = 10.0
"""An eviction waits no longer than this for all of its saves, an interrupted request for its own."""
RESTORE_S = 60.0
"""A load waits no longer than this for its saved state to be checked, and again to be restored."""
KV_LOCK_S = 30.0
"""Nothing waits longer than this for what else is being done with the same files."""

SAVE_AT_END_S = 5.0
"""Stopping a keeper waits no longer than this for conversations to be saved."""
END_STEP_S = 15.0
"""For each step of a keeper's end; an engine's grace is added to its own."""
END_S = 45.0
"""For all steps together; what is left then is killed."""
END_LAST_S = 1.0
"""What a step gets at least, also where those before it took all there was."""
