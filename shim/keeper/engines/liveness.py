"""Ends engines that get no further, take too much, or cannot be reached; the core replaces them.

An engine is looked at while requests use it, and in less detail while none does. `stall_detection`
judges its progress, and `backends.engine_process.ceiling` judges the bytes that it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from backends.base import Signs
from budget.errors import EngineTimeout
from shim.keeper.engines.running_engine import RunningEngine
from shim.keeper.engines.stall_detection import StallDetector, unreachable
from shim.keeper.shell.actions_out import Shell
from shim.keeper.shell.background import Background

LOOK_EVERY_S: Final = 2.0
LOOKS_A_STALL: Final = 4
"""Looks at an engine within a short stall_timeout."""
WEIGH_EVERY_S: Final = 0.25
REST_S: Final = 1.75
"""Added to the pause between two looks at what engines take while no request uses any."""
LOOK_LIMIT_S: Final = 10.0
"""The bound of one look, whatever it waits for."""
AGAIN_S: Final = 0.2
"""Seconds between two looks at an engine that a client reports."""
_WATCHING: Final = "watching engines"
_WEIGHING: Final = "watching what engines take"


class Liveness:
    """Watches the engines of one shell.

    Args:
        shell: its engines are watched, and ended.
        stall_s: how long an engine may make no progress.
        clock: monotonic seconds.
    """

    def __init__(
        self, shell: Shell, stall_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shell = shell
        self.stall_s = stall_s
        self._clock = clock
        self._detectors: dict[str, tuple[RunningEngine, StallDetector]] = {}

    @property
    def look_every_s(self) -> float:
        """The seconds from one look to the next."""
        return min(LOOK_EVERY_S, self.stall_s / LOOKS_A_STALL)

    def begin(self, background: Background) -> None:
        """Look from now on, until the background ends."""
        background.every(_WATCHING, self.look_every_s, self.look)
        background.every(_WEIGHING, WEIGH_EVERY_S, self.weigh)

    def configured(self, stall_s: float, background: Background) -> None:
        """The configuration changed."""
        self.stall_s = stall_s
        background.change(_WATCHING, self.look_every_s)

    # Progress

    async def look(self) -> None:
        """Look once at each engine that is up, and end the engines that are stuck."""
        up = {e: running for e, running in self._shell.supervisor.now.items() if _is_up(running)}
        for engine_id in [e for e in self._detectors if e not in up]:
            del self._detectors[engine_id]
        await asyncio.gather(*(self._look_at(running) for running in up.values()))

    async def _look_at(self, running: RunningEngine) -> None:
        detector, leases = self._detector_of(running), self._leases_of(running)
        asked = leases > 0 or detector.condition != "fine"
        signs = await _signs(running, ask=asked)
        if signs is None or not self._is_there(running):
            return
        # Requests may have come and gone while the engine was asked.
        leases = min(leases, self._leases_of(running))
        uses = self._uses_of(running)
        detector.look(signs, leases=leases, asked=asked, now=self._clock(), uses=uses)
        error = detector.verdict(running.entry.label, self.stall_s, running.engine.log_tail)
        if error is not None:
            self._shell.supervisor.end(running.entry.engine_id, running.generation, error)

    def _detector_of(self, running: RunningEngine) -> StallDetector:
        held = self._detectors.get(running.entry.engine_id)
        if held is None or held[0] is not running:
            held = self._detectors[running.entry.engine_id] = (running, StallDetector())
        return held[1]

    def _leases_of(self, running: RunningEngine) -> int:
        """How many requests use an engine. An engine that is not ready yet evaluates its warm prompt: 1."""
        if not running.ready:
            return 1
        residents = self._shell.core.state.residents
        engine_id = running.entry.engine_id
        return len(residents[engine_id].leases) if engine_id in residents else 0

    def _uses_of(self, running: RunningEngine) -> frozenset[str]:
        """The ids of the requests that use an engine."""
        residents = self._shell.core.state.residents
        engine_id = running.entry.engine_id
        return frozenset(residents[engine_id].leases) if engine_id in residents else frozenset()

    def _is_there(self, running: RunningEngine) -> bool:
        return (
            _is_up(running) and self._shell.supervisor.now.get(running.entry.engine_id) is running
        )

    def idle_since(self, engine_id: str) -> float | None:
        """Since when (monotonic seconds) a healthy engine works on fewer requests than hold a lease.

        None while it works on all of them, has none, or is itself at fault. It is known from the second
        look after a lease began.
        """
        held = self._detectors.get(engine_id)
        return held[1].idle_since if held is not None and self._is_there(held[0]) else None

    async def check_now(self, engine_id: str, generation: int) -> None:
        """A client reports an engine: end it at once if it is not reachable or does not answer.

        An engine that computes and does not answer is left to the regular looks. Takes seconds at most.
        """
        running = self._shell.supervisor.now.get(engine_id)
        if running is None or running.generation != generation or not self._is_there(running):
            return
        first = await _signs(running, ask=True)
        if first is None or first.slots is not None or first.answers:
            return
        await asyncio.sleep(AGAIN_S)
        again = await _signs(running, ask=first.reachable)
        if again is None or not self._is_there(running):
            return
        label, tail = running.entry.label, running.engine.log_tail
        if not again.reachable:
            self._shell.supervisor.end(engine_id, generation, unreachable(label))
        elif again.slots is None and not again.answers and again.cpu_s == first.cpu_s:
            self._shell.supervisor.end(
                engine_id,
                generation,
                EngineTimeout(
                    f"{label} was reported by a client: it does not answer on its socket, and its"
                    " process uses no CPU time.",
                    hint="It is ended, and the next request starts it again.",
                    model=label,
                    seen="stopped" if again.stopped else "silent",
                    log_tail=list(tail),
                ),
            )

    # Bytes

    async def weigh(self) -> None:
        """End the engines in use that take more bytes than they may.

        A load checks its own bytes (`backends.engine_process.load`). `Monitor` checks idle engines and
        the bytes of GPUs.
        """
        in_use = [
            x for x in self._shell.supervisor.now.values() if _is_up(x) and self._leases_of(x)
        ]
        for running in in_use:
            error = running.engine.overgrown({})
            if error is not None:
                self._shell.supervisor.end(running.entry.engine_id, running.generation, error)
        if not in_use and not self._shell.core.state.residents.loading:
            await asyncio.sleep(REST_S)


def _is_up(running: RunningEngine) -> bool:
    """Whether an engine has loaded and is not about to end."""
    return running.report is not None and running.ending is None and not running.leaving


async def _signs(running: RunningEngine, *, ask: bool) -> Signs | None:
    try:
        async with asyncio.timeout(LOOK_LIMIT_S):
            return await running.engine.signs(ask=ask)
    except TimeoutError:
        return Signs(answers=False)
