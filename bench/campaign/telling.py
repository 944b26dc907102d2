"""What a caller tells the campaign, one JSON object a line, and what the campaign tells it, in a file.

A line says each call's begin and end, so that a call that never ends is seen from outside.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import (
    CallerError,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    KeepwarmError,
    RoleViolation,
    UnknownModel,
)

FOLDER = Path(os.environ.get("FAULTS_FOLDER", "."))
_PARENT = os.getppid()
PAUSES = 4
"""So often a request is told that its model is not tried yet, and waits until it is."""
_out = threading.Lock()
_numbers = itertools.count(1)


class GivenUp(BaseException):
    """A caller's own interruption, which is no failure of the call."""


class WrongAnswer(Exception):
    """An answer that is not the model's."""


def tell(**what: Any) -> None:
    """One line for the campaign. Written whole at once: a signal's handler may raise anywhere else."""
    line = (json.dumps(what) + "\n").encode()
    with _out:
        os.write(1, line)


@dataclass(frozen=True)
class Phase:
    """A round's number, and what happens in it: `faults`, `calm`, `check`, or the end: `stop`."""

    number: int
    what: str


def phase() -> Phase:
    """The campaign's phase now; it is over when the campaign is gone."""
    if os.getppid() != _PARENT:
        return Phase(0, "stop")
    try:
        number, what = (FOLDER / "phase").read_text().split()
    except (OSError, ValueError):
        return Phase(0, "check")
    return Phase(int(number), what)


def goes_on() -> bool:
    """Whether calls are made now."""
    return phase().what in ("faults", "calm")


def wait_for_calm() -> None:
    """Until the faults of this round are over."""
    while phase().what == "faults":
        time.sleep(0.02)


def outcome(error: BaseException | None) -> dict[str, Any]:
    """How a call ended: answered, given up by its caller, or with an error that is typed or not."""
    if error is None:
        return {"outcome": "answered"}
    if isinstance(error, GivenUp | asyncio.CancelledError | GeneratorExit):
        return {"outcome": "given up"}
    told: dict[str, Any] = {"outcome": type(error).__name__, "text": str(error)[:400]}
    told["typed"] = isinstance(error, KeepwarmError) and type(error).__name__ != "InternalError"
    return told


class Request:
    """One request: at most two calls, both told.

    Args:
        model: what is asked, or several with `+` between.
        kind: how.

    Attributes:
        delivered: whether its caller has anything of the answer; then it is not sent again.
    """

    def __init__(self, model: str, kind: str) -> None:
        self.number = next(_numbers)
        self.delivered = False
        self._first: dict[str, Any] | None = None
        self._pauses = 0
        self._pause_s = 0.0
        tell(begin=self.number, model=model, kind=kind, at=time.monotonic())

    def failed(self, error: BaseException) -> bool:
        """Note how a call ended; returns whether the request is to be sent once more.

        A call that was refused because it came before the next try is no second call.
        """
        if self._first is None and not self.delivered and _helps_to_repeat(error):
            self._first = outcome(error)
        elif self._first is None or self._pauses == PAUSES or _pause_s(error) is None:
            self.end(error)
            return False
        else:
            self._pauses += 1
        self._pause_s = _pause_s(error) or 0.0
        tell(pause=self.number, at=time.monotonic(), **self._first)
        return True

    def wait(self) -> None:
        """Until the faults of this round are over, and the last error lets the model be tried again."""
        wait_for_calm()
        time.sleep(self._pause_s)

    @property
    def is_repeated(self) -> bool:
        """Whether its first call is over."""
        return self._first is not None

    def again(self) -> None:
        """The second call begins."""
        tell(again=self.number, at=time.monotonic())

    def end(self, error: BaseException | None = None) -> None:
        """The last call is over."""
        tell(end=self.number, at=time.monotonic(), delivered=self.delivered, **outcome(error))


def _pause_s(error: BaseException) -> float | None:
    return error.retry_after_s if isinstance(error, KeepwarmError) else None


def _helps_to_repeat(error: BaseException) -> bool:
    """Whether it is no fault of the request itself; its own deadline is one."""
    if isinstance(error, DeadlineExceeded | Cancelled) or type(error).__name__ == "InternalError":
        return False
    fault_of_files = isinstance(error, ConfigError | UnknownModel | RoleViolation)
    return isinstance(error, KeepwarmError) and (
        fault_of_files or not isinstance(error, CallerError)
    )
