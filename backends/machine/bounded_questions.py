"""Questions that may hang (a driver, a network file system), from an event loop and with a bound."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from budget.errors import LoadFailed

ANSWER_LIMIT_S: Final = 10.0
START_LIMIT_S: Final = 10.0
"""A thread that has not begun by then found no memory."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def asked(question: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The answer of a driver or a file system to a question of a load, asked in a thread.

    Raises:
        LoadFailed: nothing, for too long. The thread goes on waiting: nothing can end that.
    """
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await asyncio.to_thread(question, *args, **kwargs)
    except TimeoutError:
        name = getattr(question, "__name__", str(question))
        raise LoadFailed(
            f"a driver or a file system did not answer within {ANSWER_LIMIT_S:g} s ({name}).",
            hint="Look at the kernel's log, and at the disk that holds the model.",
        ) from None


async def in_own_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of slow work in a thread of its own, which delays no other work and no process end.

    Where the wait is cancelled, the thread goes on and what comes of it is dropped.

    Raises:
        LoadFailed: no thread could be started.
        whatever `work` raises.
    """
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    answer: asyncio.Future[_T] = loop.create_future()

    def unless_done(set_it: Callable[[], None]) -> None:
        if not answer.done():
            set_it()

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(begun.set)
        try:
            result = work(*args, **kwargs)
        except BaseException as error:
            failure = error
            settle = lambda: answer.set_exception(failure)  # noqa: E731
        else:
            settle = lambda: answer.set_result(result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(unless_done, settle)

    try:
        # Not by `Thread.start`, which waits without bound for a thread that found no memory.
        _thread.start_new_thread(run, ())
        async with asyncio.timeout(START_LIMIT_S):
            await begun.wait()
    except (RuntimeError, TimeoutError) as error:
        raise LoadFailed(
            f"no thread could be started: {str(error) or 'it does not begin'}.",
            hint="See the limits of processes and memory of this user (`ulimit -u`).",
        ) from error
    return await answer
