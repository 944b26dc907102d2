"""Work on threads: results as they come, and nothing further begins after a failure or an interrupt."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def threads(at_once: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. An error or an interrupt inside drops the work that has not begun."""
    with ThreadPoolExecutor(at_once, name) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def as_they_end(work: Collection[Future[T]]) -> Iterator[Future[T]]:
    """Each future that succeeds, as soon as it has. A failure cancels the work that has not begun.

    Raises:
        BaseException: the first failure, after what was under way has ended and was given.
    """
    failure: BaseException | None = None
    for future in as_completed(work):
        if future.cancelled():
            continue
        if (error := future.exception()) is None:
            yield future
            continue
        failure = failure or error
        for other in work:
            other.cancel()
    if failure is not None:
        raise failure
