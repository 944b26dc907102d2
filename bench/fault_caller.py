"""One calling program of the fault campaign: `python bench/fault_caller.py MODE SEED COUNT`.

MODE is `threads` (three at once), `tasks` (three on one event loop, one loop after another) or `single`.
Every call is told on standard output as it begins and as it ends, one JSON object a line, so that a call
that never ends is seen from outside. SIGUSR1 writes every thread's stack to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shim import ConfigError, KeepwarmError, Shim

CHAT = ("a", "b", "c")
EMBED = "e"
AT_ONCE = 3
ROUNDS_A_LOOP = 5

_out = threading.Lock()
_numbers = itertools.count(1)


class Stale(Exception):
    """The configuration was edited since this program read it: it reads it again."""


class GivenUp(BaseException):
    """A caller's own interruption, which is no failure of the call."""


def tell(**what: Any) -> None:
    """One line for the campaign."""
    with _out:
        print(json.dumps(what), flush=True)


def goes_on() -> bool:
    """Whether the campaign lasts; asked before every call."""
    return not Path(os.environ["FAULTS_STOP_FILE"]).exists()


def outcome(error: BaseException | None) -> dict[str, Any]:
    """How a call ended: answered, given up by its caller, or with an error that is typed or not."""
    if error is None:
        return {"outcome": "answered"}
    if isinstance(error, GivenUp | asyncio.CancelledError | GeneratorExit):
        return {"outcome": "given up"}
    told: dict[str, Any] = {"outcome": type(error).__name__, "text": str(error)[:300]}
    told["typed"] = isinstance(error, KeepwarmError) and type(error).__name__ != "InternalError"
    return told


@contextlib.contextmanager
def noted(model: str, kind: str) -> Any:
    """Tell of one call, and swallow what it raised."""
    number, failure = next(_numbers), None
    tell(begin=number, model=model, kind=kind, at=time.monotonic())
    try:
        yield
    except BaseException as error:
        failure = error
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    finally:
        tell(end=number, at=time.monotonic(), **outcome(failure))
    if isinstance(failure, ConfigError):
        raise Stale


def options(chance: random.Random) -> dict[str, Any]:
    """Priorities, deadlines and lengths as programs mix them."""
    made: dict[str, Any] = {"max_tokens": chance.choice((1, 4, 16)), "temperature": 0.0}
    if chance.random() < 0.2:
        made["priority"] = chance.choice((-1, 1))
    if chance.random() < 0.2:
        made["deadline_s"] = chance.choice((0.5, 5.0, 20.0))
    return made


def one_call(shim: Shim, chance: random.Random) -> None:
    """One call of a thread, of one kind or another."""
    kind = chance.choice(("chat", "chat", "chat", "stream", "broken", "embed", "plan", "fork"))
    model = chance.choice(CHAT)
    if kind == "embed":
        with noted(EMBED, kind):
            shim.embed(EMBED, ["some text", "more of it"])
    elif kind == "stream":
        with noted(model, kind), shim.stream(model, "Count.", **options(chance)) as pieces:
            for _ in pieces:
                pass
    elif kind == "broken":
        with noted(model, kind), shim.stream(model, "Count.", **options(chance)) as pieces:
            next(pieces, None)
            raise GivenUp
    elif kind == "plan":
        order = [chance.choice(CHAT) for _ in range(3)]
        with noted("+".join(order), kind), shim.plan(order):
            for step in order:
                shim.chat(step, "Hello.", **options(chance))
    else:
        with noted(model, kind):
            if kind == "fork":
                fork_and_forget()
            shim.chat(model, "Hello.", **options(chance))


def fork_and_forget() -> None:
    """A child that collects its garbage and leaves must end nothing of its parent's."""
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)


def threads(seed: int, count: int) -> None:
    """Three threads on one shim, which is made anew when its configuration is out of date."""
    chances = [random.Random(seed * 10 + number) for number in range(AT_ONCE)]

    def run(shim: Shim, chance: random.Random) -> None:
        with contextlib.suppress(Stale):
            for _ in range(count):
                if not goes_on():
                    return
                one_call(shim, chance)

    while goes_on():
        with Shim(os.environ["KEEPWARM_CONFIG"]) as shim:
            workers = [threading.Thread(target=run, args=(shim, chance)) for chance in chances]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()


async def one_task(shim: Shim, chance: random.Random) -> None:
    """One call of a task; some are cancelled in the middle."""
    model = chance.choice(CHAT)
    with noted(model, "task"):
        call = asyncio.ensure_future(shim.achat(model, "Hello.", **options(chance)))
        if chance.random() < 0.2:
            await asyncio.wait({call}, timeout=chance.random() * 0.1)
            call.cancel()
        await call


def tasks(seed: int, count: int) -> None:
    """Three tasks at once, and a new event loop every few rounds."""
    chance = random.Random(seed)

    async def run(shim: Shim) -> None:
        for _ in range(ROUNDS_A_LOOP):
            await asyncio.gather(*(one_task(shim, chance) for _ in range(AT_ONCE)))

    while goes_on():
        with contextlib.suppress(Stale), Shim(os.environ["KEEPWARM_CONFIG"]) as shim:
            for _ in range(count):
                if not goes_on():
                    return
                asyncio.run(run(shim))


def single(seed: int, count: int) -> None:
    """One thread, and a shim of its own every few calls."""
    chance = random.Random(seed)
    for _ in range(count):
        if not goes_on():
            return
        with contextlib.suppress(Stale), Shim(os.environ["KEEPWARM_CONFIG"]) as shim:
            for _ in range(ROUNDS_A_LOOP):
                one_call(shim, chance)


MODES: dict[str, Callable[[int, int], None]] = {
    "threads": threads,
    "tasks": tasks,
    "single": single,
}

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    MODES[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    tell(finished=True)
