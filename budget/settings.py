"""What an operator decides about waiting, looking ahead and interrupting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prefetch = Literal["off", "stage", "spare", "load"]


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """May change while a core runs (`budget.handlers.reconfigure`).

    `max_wait_s`: after this a waiting request cannot be passed any more. `max_queue`: requests that
    may wait in all; `max_queue_per_model`: for one model name; None is no bound of its own.
    `preempt`: leases of lower priority may be asked to yield. `prefetch`: what declared uses may
    cause before a request asks for them. `cores`: those that engines compute on; with "spare" a
    load ahead needs one that is free. None: there are always enough.
    """

    max_wait_s: float = 15.0
    max_queue: int = 512
    max_queue_per_model: int | None = None
    prefetch: Prefetch = "off"
    preempt: bool = True
    cores: int | None = None
