"""Questions that may hang (a driver, a network file system), from an event loop and with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from budget.errors import LoadFailed

ANSWER_LIMIT_S: Final = 10.0

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def asked(question: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a driver or a file system answers, asked in a thread, for a load.

    Raises:
        LoadFailed: nothing, for too long. The thread goes on waiting: nothing can end that.
    """
    try:
        return await asyncio.wait_for(asyncio.to_thread(question, *args, **kwargs), ANSWER_LIMIT_S)
    except TimeoutError:
        name = getattr(question, "__name__", str(question))
        raise LoadFailed(
            f"a driver or a file system did not answer within {ANSWER_LIMIT_S:g} s ({name}).",
            hint="Look at the kernel's log, and at the disk that holds the model.",
        ) from None
