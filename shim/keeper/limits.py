"""The bounds of the keeper's waits: for engines, for disks, and for its own clean-up.

Read as `limits.STOP_S` where a wait begins, so that every bound of the shell is found here. What one
answer may cost its caller is another matter (`backends.openai.connections.bounds`), and so is how long a
client waits for a keeper that says nothing (`shim.wire.silence`).
"""

from __future__ import annotations

STOP_S = 10.0
"""The time to end beyond its grace for an engine, and for a cancelled task on it. After that the engine is
killed, and its bytes count as free."""
PREPARE_S = 60.0
"""The time until an engine's process is started and ready to load."""
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
"""The longest wait for other work on the same files."""

SAVE_AT_END_S = 5.0
"""Stopping a keeper waits no longer than this for conversations to be saved."""
END_STEP_S = 15.0
"""The bound of each step of a keeper's end. The step that ends engines gets their grace in addition."""
END_S = 45.0
"""The bound of all steps together; engines that are left then are killed."""
END_LAST_S = 1.0
"""The least time of a step, also if the steps before it used up all of `END_S`."""
