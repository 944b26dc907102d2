"""One calling program of the fault campaign: `python bench/campaign/caller.py MODE SEED`.

MODE is `threads` (three at once), `tasks` (three on one event loop, one loop after another) or `single`.
SIGUSR1 writes every thread's stack to standard error, SIGUSR2 interrupts calls, SIGHUP forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from campaign.telling import (
    GivenUp,
    Request,
    WrongAnswer,
    goes_on,
    phase,
    tell,
)
from shim import ConfigError, Shim

CONFIG = os.environ.get("KEEPWARM_CONFIG", "")
CHATS = ("a", "a", "b", "s")
ALL = (*CHATS, "c", "w", "w")
AT_ONCE = 3
ROUNDS_A_LOOP = 4
FORK_LIMIT_S = 20.0
Attempt = Callable[[Shim, Request], None]


class Interruptible:
    """What a signal's handler may interrupt: a call of the main thread, or the tasks of a loop."""

    on = False
    loop: asyncio.AbstractEventLoop | None = None


def options(chance: random.Random, request: Request) -> dict[str, Any]:
    """Priorities, deadlines and lengths as programs mix them; a second call has no deadline."""
    made: dict[str, Any] = {"max_tokens": chance.choice((1, 4, 16)), "temperature": 0.0}
    if chance.random() < 0.2:
        made["priority"] = chance.choice((-1, 1))
    if chance.random() < 0.1 and not request.is_repeated:
        made["deadline_s"] = chance.choice((0.5, 5.0, 20.0))
    return made


def checked(value: object, right: object) -> None:
    """Nothing.

    Raises:
        WrongAnswer: it is not what the model says.
    """
    if value != right:
        raise WrongAnswer(f"{value!r:.100} and not {right!r}")


def ask(shim: Shim, model: str, request: Request, chance: random.Random) -> None:
    """One plain call of a model, whose answer is checked where it is known."""
    if model == "w":
        checked(shim.call("w", numbers=[1, 2, 3]).value, 6)
    elif model == "c":
        checked(len(shim.embed("c", ["some text", "more of it"]).vectors), 2)
    else:
        text = shim.chat(model, "Hello.", **options(chance, request)).content
        if model == "s":
            checked(text, "Hello you")
    request.delivered = True


def stream(shim: Shim, model: str, request: Request, chance: random.Random) -> None:
    """A stream to its end."""
    if model == "w":
        with shim.stream_call("w", numbers=[1, 2, 3], streamed=True) as items:
            for item, right in zip(items, (1, 3, 6), strict=False):
                request.delivered = True
                checked(item, right)
        return
    with shim.stream(model, "Count.", **options(chance, request)) as pieces:
        for _ in pieces:
            request.delivered = True


def broken(shim: Shim, model: str, request: Request, chance: random.Random) -> None:
    """A stream that its caller gives up."""
    with shim.stream(model, "Count.", **options(chance, request)) as pieces:
        next(pieces, None)
        raise GivenUp


def own_path(shim: Shim, _model: str, request: Request, chance: random.Random) -> None:
    """A path of the server's own, by an httpx client, read at once or as it comes."""
    with shim.http("s") as http:
        if chance.random() < 0.5:
            http.post("/inference", json={})
        else:
            with http.stream("POST", "/inference", json={}) as answer:
                for _ in answer.iter_raw():
                    request.delivered = True


def plan(shim: Shim, models: str, request: Request, chance: random.Random) -> None:
    """Three calls in an order that is declared."""
    order = models.split("+")
    with shim.plan(order):
        for model in order:
            ask(shim, model, request, chance)


KINDS = (ask, ask, ask, stream, stream, broken, own_path, plan)


def one_request(shim: Shim, chance: random.Random, *, main: bool = False) -> None:
    """One request of a thread, of one kind or another."""
    kind = chance.choice(KINDS)
    model = chance.choice(ALL if kind in (ask, stream) else CHATS)
    if kind is stream and model == "c":
        model = "a"
    if kind is plan:
        model = "+".join(chance.choice(ALL) for _ in range(3))
    elif kind is own_path:
        model = "s"
    request = Request(model, kind.__name__)
    failure = _attempt(lambda: kind(shim, model, request, chance), main=main)
    again = partial(_again, shim, failure, kind, model, request, chance)
    while failure is not None and request.failed(failure):
        request.wait()
        request.again()
        failure = _attempt(again, main=main)
    if failure is None:
        request.end()


def _again(shim: Shim, failure: BaseException | None, kind: Any, *rest: Any) -> None:
    """The second call; after an edit of the configuration by a program that has read it."""
    if isinstance(failure, ConfigError):
        with Shim(CONFIG) as newer:
            kind(newer, *rest)
    else:
        kind(shim, *rest)


def _attempt(call: Callable[[], None], *, main: bool) -> BaseException | None:
    try:
        Interruptible.on = main
        call()
        Interruptible.on = Interruptible.on and not main
    except BaseException as error:
        if main:
            Interruptible.on = False
        return error
    return None


def threads(seed: int) -> None:
    """Three threads on one shim, for a round."""
    chances = [random.Random(seed * 10 + number) for number in range(AT_ONCE)]

    def run(shim: Shim, chance: random.Random) -> None:
        while goes_on():
            one_request(shim, chance)

    with Shim(CONFIG) as shim:
        workers = [threading.Thread(target=run, args=(shim, chance)) for chance in chances]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


async def one_task(shim: Shim, chance: random.Random) -> None:
    """One request of a task; some are cancelled in the middle."""
    model = chance.choice(("a", "b", "c", "w", "s"))
    request = Request(model, "task")
    call = asyncio.ensure_future(_asked(shim, model, request, chance))
    try:
        if chance.random() < 0.2:
            await asyncio.wait({call}, timeout=chance.random() * 0.1)
            call.cancel()
        while True:
            try:
                await call
                return request.end()
            except BaseException as error:
                if not request.failed(error):
                    return None
            await asyncio.to_thread(request.wait)
            request.again()
            call = asyncio.ensure_future(_asked(shim, model, request, chance))
    except BaseException as error:
        call.cancel()
        request.end(error)


async def _asked(shim: Shim, model: str, request: Request, chance: random.Random) -> None:
    if model == "w":
        checked((await shim.acall("w", numbers=[4, 5])).value, 9)
    elif model == "c":
        await shim.aembed("c", ["some text"])
    else:
        await shim.achat(model, "Hello.", **options(chance, request))


def tasks(seed: int) -> None:
    """Three tasks at once, and a new event loop every few requests, for a round."""
    chance = random.Random(seed)

    async def run(shim: Shim) -> None:
        Interruptible.loop = asyncio.get_running_loop()
        for _ in range(ROUNDS_A_LOOP):
            if goes_on():
                together = (one_task(shim, chance) for _ in range(AT_ONCE))
                await asyncio.gather(*together, return_exceptions=True)
        Interruptible.loop = None

    with Shim(CONFIG) as shim:
        while goes_on():
            asyncio.run(run(shim))


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        if getattr(task.get_coro(), "__name__", "") == "one_task":
            task.cancel()


def single(seed: int) -> None:
    """One thread, and a shim of its own every few requests, for a round."""
    chance = random.Random(seed)
    while goes_on():
        with Shim(CONFIG) as shim:
            for _ in range(ROUNDS_A_LOOP):
                if goes_on():
                    one_request(shim, chance, main=True)


MODES: dict[str, Callable[[int], None]] = {"threads": threads, "tasks": tasks, "single": single}


def interrupt(_number: int, _frame: object) -> None:
    """SIGUSR2: what a program's own handler raises in the middle of a call, or cancels."""
    if Interruptible.loop is not None:
        Interruptible.loop.call_soon_threadsafe(_cancel_all, Interruptible.loop)
    if Interruptible.on:
        Interruptible.on = False
        raise GivenUp


def fork_and_forget(_number: int, _frame: object) -> None:
    """SIGHUP: a child that collects its garbage and leaves must end nothing of its parent's."""
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(0)
    until = time.monotonic() + FORK_LIMIT_S
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            tell(stuck="a forked child did not end")
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)


def main(mode: str, seed: int) -> None:
    """Rounds, until the campaign is over; after each, what this program still holds is told."""
    done = 0
    while (now := phase()).what != "stop":
        if now.what == "check" and now.number > done:
            done = now.number
            tell(round=done)  # it came too late for this round
        if now.what == "check" or now.number == done:
            time.sleep(0.02)
            continue
        with contextlib.suppress(ConfigError):
            MODES[mode](seed + now.number)
        gc.collect()
        done = now.number
        held = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        tell(round=done, descriptors=held, threads=threading.active_count())


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGUSR2, interrupt)
    signal.signal(signal.SIGHUP, fork_and_forget)
    main(sys.argv[1], int(sys.argv[2]))
