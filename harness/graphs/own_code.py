"""The code of steps and conditions: in a task or a thread of its own, and within its time."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import copy_context
from typing import Any, ParamSpec

from harness.graphs.step import Step, StepContext, T
from shim import InvalidRequest

_Given = ParamSpec("_Given")


class Ended(BaseException):
    """A step raised an interrupt or an exit, which would stop the loop before other steps have ended."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


async def in_own_task(
    code: Callable[_Given, Coroutine[Any, Any, T]], *args: _Given.args, **kwargs: _Given.kwargs
) -> T:
    """What the user's code returns. Where it cancels its own task, it has failed, and the run goes on.

    Raises:
        Ended: it raised an interrupt or an exit.
    """

    async def ending() -> T:
        try:
            return await code(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as error:
            raise Ended(error) from error

    try:
        return await asyncio.create_task(ending())
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise asyncio.CancelledError("it was cancelled, and the run was not") from error


def is_cancelled() -> bool:
    """Whether the run is cancelled. A step can raise `CancelledError` of itself, as any other error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def holds(when: Callable[[Mapping[str, Any]], bool], values: Mapping[str, Any]) -> bool:
    """Whether a condition holds.

    Raises:
        InvalidRequest: it gave a coroutine.
    """
    found: Any = when(values)
    if inspect.iscoroutine(found):
        found.close()
        raise InvalidRequest(
            "A condition gave a coroutine, which is always true.", hint="Answer at once."
        )
    return bool(found)


async def bounded(step: Step, work: Coroutine[Any, Any, Any]) -> Any:
    """The step's value, within its time.

    A coroutine that outlives its cancellation, or blocks the loop, has not kept its time either.

    Raises:
        TimeoutError: it took longer.
    """
    loop = asyncio.get_running_loop()
    over = TimeoutError(f"it took longer than {step.timeout_s or 0:g} s")
    try:
        async with asyncio.timeout(step.timeout_s) as limit:
            value = await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise over from error
    if limit.expired() or loop.time() > (limit.when() or math.inf):
        raise over
    return value


async def of_function(run: Callable[[StepContext], Any], context: StepContext) -> Any:
    """What a step's function returns: awaited, or from a thread of its own."""
    if inspect.iscoroutinefunction(run):
        return await run(context)
    value = await _on_thread(run, context)
    return await value if inspect.isawaitable(value) else value


def _on_thread(run: Callable[[StepContext], Any], context: StepContext) -> asyncio.Future[Any]:
    """What a function returns, from a thread of its own.

    A function that computes cannot be interrupted. Its thread goes on alone after a time-out, and does not
    keep the program from ending.
    """
    loop, within = asyncio.get_running_loop(), copy_context()
    done = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result(value) if error is None else done.set_exception(error)

    def work() -> None:
        value: Any = None
        failure: BaseException | None = None
        try:
            value = within.run(run, context)
        except StopIteration as error:
            failure = RuntimeError(f"the step raised {error!r}")
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the run is over, and its loop closed
            loop.call_soon_threadsafe(tell, value, failure)

    threading.Thread(target=work, name=context.step.name, daemon=True).start()
    return done
