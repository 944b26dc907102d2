"""The core's messages, as lines of the keeper's log."""

from __future__ import annotations

import logging

from budget import actions as act
from budget.snapshot import record_to_wire

LOG = logging.getLogger("keepwarm.keeper")


def say(action: act.Record | act.Alert | act.LowMemory) -> None:
    """Log one line for an action that only reports."""
    match action:
        case act.Record():
            LOG.info("decision %s", record_to_wire(action.record))
        case act.Alert():
            LOG.warning(
                "device %s is %s: %d reserved, %d allowed",
                action.device,
                "over its limit" if action.over else "back under its limit",
                action.reserved_bytes,
                action.ceiling_bytes,
            )
        case act.LowMemory():
            LOG.warning(
                "device %s has %s: %d free, %d reserved for other programs",
                action.device,
                "less free than its reserve" if action.low else "its reserve free again",
                action.free_bytes,
                action.reserve_bytes,
            )
