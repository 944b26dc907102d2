"""What a memory does, on the trace of the run that is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from typing import ParamSpec, TypeVar

from harness.memory.passages import CaughtUp, Found
from harness.on_trace import span

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def traced(name: str) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Makes a method a span, with what it found, where a run is under way."""

    def decorated(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        @wraps(method)
        def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            with span(name) as told:
                found = method(*args, **kwargs)
                if told is not None:
                    told.set(**_facts(found))
                return found

        return call

    return decorated


def _facts(found: object) -> Mapping[str, object]:
    if isinstance(found, Found):
        return {"hits": len(found.hits), "degraded": found.degraded}
    if isinstance(found, CaughtUp):
        return asdict(found)
    if isinstance(found, bool):
        return {"made": found}
    return {"passages": len(found) if isinstance(found, list) else found}
