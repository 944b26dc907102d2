"""Ends engines that get no further, take too much, or cannot be reached; the core replaces them.

An engine is looked at while requests use it, and in less detail while none does. `shim.keeper.pulse`
judges what is seen, `backends.llama.ceiling` what it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from backends.base import Signs
from budget.errors import EngineTimeout
from shim.keeper.background import Background
from shim.keeper.life import Life
from shim.keeper.pulse import Pulse, unreachable
from shim.keeper.shell import Shell

LOOK_EVERY_S: Final = 2.0
LOOKS_A_STALL: Final = 4
"""Looks at an engine within a short stall_timeout."""
WEIGH_EVERY_S: Final = 0.25
REST_S: Final = 1.75
"""Added to the pause between two looks at what engines take while no request uses any."""
LOOK_LIMIT_S: Final = 10.0
"""Until a look has ended, whatever it waits for."""
AGAIN_S: Final = 0.2
"""Between two looks at an engine that a client reports."""
_WATCHING: Final = "watching engines"
_WEIGHING: Final = "watching what engines take"


class Liveness:
    """Watches the engines of one shell.

    Args:
        shell: whose lives are watched, and ended.
        stall_s: how long an engine may make no progress.
        clock: seconds that go on evenly.
    """

    def __init__(
        self, shell: Shell, stall_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shell = shell
        self.stall_s = stall_s
        self._clock = clock
        self._pulses: dict[str, tuple[Life, Pulse]] = {}

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
        """One look at each engine that is up; those that need it are ended."""
        lives = {e: life for e, life in self._shell.lives.now.items() if _is_up(life)}
        for engine_id in [e for e in self._pulses if e not in lives]:
            del self._pulses[engine_id]
        await asyncio.gather(*(self._look_at(life) for life in lives.values()))

    async def _look_at(self, life: Life) -> None:
        pulse, leases = self._pulse_of(life), self._leases_of(life)
        asked = leases > 0 or pulse.condition != "fine"
        signs = await _signs(life, ask=asked)
        if signs is None or not self._is_there(life):
            return
        # Requests may have come and gone while it was asked.
        leases = min(leases, self._leases_of(life))
        pulse.look(signs, leases=leases, asked=asked, now=self._clock())
        error = pulse.verdict(life.entry.label, self.stall_s, life.engine.log_tail)
        if error is not None:
            self._shell.lives.end(life.entry.engine_id, life.generation, error)

    def _pulse_of(self, life: Life) -> Pulse:
        held = self._pulses.get(life.entry.engine_id)
        if held is None or held[0] is not life:
            held = self._pulses[life.entry.engine_id] = (life, Pulse())
        return held[1]

    def _leases_of(self, life: Life) -> int:
        """The requests that use an engine. One that is not ready yet evaluates its warm prompt."""
        if not life.ready:
            return 1
        residents = self._shell.core.desk.residents
        engine_id = life.entry.engine_id
        return len(residents[engine_id].leases) if engine_id in residents else 0

    def _is_there(self, life: Life) -> bool:
        return _is_up(life) and self._shell.lives.now.get(life.entry.engine_id) is life

    def idle_since(self, engine_id: str) -> float | None:
        """Since when (monotonic seconds) a healthy engine works on fewer requests than hold a lease.

        None while it works on all of them, has none, or is itself at fault. Known to the second look
        after a lease began.
        """
        held = self._pulses.get(engine_id)
        return held[1].idle_since if held is not None and self._is_there(held[0]) else None

    async def check_now(self, engine_id: str, generation: int) -> None:
        """A client reports an engine: end it at once if it is not reachable or does not answer.

        One that computes and does not answer is left to the looks. Takes seconds at most.
        """
        life = self._shell.lives.now.get(engine_id)
        if life is None or life.generation != generation or not self._is_there(life):
            return
        first = await _signs(life, ask=True)
        if first is None or first.slots is not None or first.answers:
            return
        await asyncio.sleep(AGAIN_S)
        again = await _signs(life, ask=first.reachable)
        if again is None or not self._is_there(life):
            return
        label, tail = life.entry.label, life.engine.log_tail
        if not again.reachable:
            self._shell.lives.end(engine_id, generation, unreachable(label))
        elif again.slots is None and not again.answers and again.cpu_s == first.cpu_s:
            self._shell.lives.end(
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
        """End the engines in use that take more than they may.

        Loads look after themselves (`backends.llama.loading`), and `Monitor` after engines at rest
        and the bytes of GPUs.
        """
        in_use = [x for x in self._shell.lives.now.values() if _is_up(x) and self._leases_of(x)]
        for life in in_use:
            error = life.engine.overgrown({})
            if error is not None:
                self._shell.lives.end(life.entry.engine_id, life.generation, error)
        if not in_use and not self._shell.core.desk.residents.loading:
            await asyncio.sleep(REST_S)


def _is_up(life: Life) -> bool:
    """Whether an engine has loaded and is not about to end."""
    return life.report is not None and life.ending is None and not life.leaving


async def _signs(life: Life, *, ask: bool) -> Signs | None:
    try:
        async with asyncio.timeout(LOOK_LIMIT_S):
            return await life.engine.signs(ask=ask)
    except TimeoutError:
        return Signs(answers=False)
