"""What a memory does, on the trace of the run that is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from harness.memory.passages import CaughtUp, Found
from traces import current_run

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def traced(name: str) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Makes a method a span, with what it found, where a run is under way."""

    def decorated(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        @wraps(method)
        def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            run = current_run()
            if run is None:
                return method(*args, **kwargs)
            with run.span(name) as span:
                found = method(*args, **kwargs)
                span.set(**_facts(found))
                return found

        return call

    return decorated


def _facts(found: object) -> Mapping[str, object]:
    if isinstance(found, Found):
        return {"hits": len(found.hits), "degraded": found.degraded}
    if isinstance(found, CaughtUp):
        return {
            "embedded": found.embedded,
            "dropped": found.dropped,
            "waiting": found.waiting,
            "degraded": found.degraded,
        }
    if isinstance(found, bool):
        return {"made": found}
    return {"passages": len(found) if isinstance(found, list) else found}
