"""Every error keepwarm raises, in one tree, by whose fault it is.

    KeepwarmError
    ├── CallerError                the request or the configuration is wrong
    │   ├── ConfigError            a configuration file or variable does not hold
    │   ├── InvalidRequest         an option or a message of a call is not allowed
    │   ├── UnknownModel           no model of that name is configured
    │   ├── NeverFits              more bytes than the limit allows even with everything else evicted
    │   ├── RoleViolation          a model does not meet what its role asks for
    │   └── PromptTooLong          the prompt does not fit the context
    ├── LoadError                  there is too much to do right now; trying later can help
    │   ├── QueueFull              the bounded queue has no place left
    │   ├── DeadlineExceeded       the deadline passed before the request could be served
    │   ├── AdmissionDenied        nothing is admitted now (pins and leases hold the bytes, over the limit)
    │   └── Cancelled              the request was withdrawn by its caller or its client went away
    ├── OutsideError               an engine, an endpoint, a file or the keeper failed
    │   ├── EngineDied             the engine's process ended while it was needed
    │   ├── EngineTimeout          the engine made no progress for too long
    │   ├── WorkerError            the code of a Python model raised an exception
    │   ├── LoadFailed             a model could not be loaded
    │   │   └── OutOfMemory        the device refused the bytes
    │   ├── EndpointUnavailable    nothing answers at the endpoint
    │   ├── EndpointError          the endpoint answered with an error
    │   ├── BadModelFile           a model file is damaged or impossible
    │   ├── MeasurementFailed      the dry measurement of a model gave no result
    │   └── KeeperUnavailable      the keeper is gone or did not start
    └── InternalError              a bug of ours

Every message says what happened, with which numbers, and what to do. The numbers are also in
`facts`, which is JSON-serialisable, so that an error crosses the keeper's socket without loss.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

Fact = str | int | float | bool | None | list[Any] | dict[str, Any]


class KeepwarmError(Exception):
    """Base of every error of keepwarm.

    Args:
        message: what happened, with the numbers.
        hint: what the reader can do about it; empty when there is nothing to do.
        facts: the same numbers by name, JSON-serialisable.
    """

    fault: ClassVar[str] = "unknown"

    def __init__(self, message: str, *, hint: str = "", **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts: dict[str, Fact] = facts

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        # After lines that are quoted, a hint on the last of them would seem to be a part of it.
        if "\n" in self.message:
            return f"{self.message}\n{self.hint}"
        stop = "" if self.message.endswith((".", "!", "?", ":", "…")) else "."
        return f"{self.message}{stop} {self.hint}"

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the same call can be tried: it is refused before. None: nothing says when."""
        seconds = self.facts.get("retry_after_s")
        return float(seconds) if isinstance(seconds, int | float) else None

    def in_pause(self, seconds: float, failures: int | None = None) -> Self:
        """This error, for a request that comes before the next try.

        Args:
            seconds: until then.
            failures: how many there were in a row, where that is counted.
        """
        times = "" if failures is None else f" {failures} times in a row"
        self.facts["retry_after_s"] = round(seconds, 3)
        pause = f"That failed{times}, and is tried again in {max(seconds, 0.1):.1f} s."
        self.hint = f"{self.hint} {pause}".lstrip()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (error_from_wire, (self.to_wire(),))

    def to_wire(self) -> dict[str, Any]:
        """The error as JSON-serialisable data; `error_from_wire` is the inverse."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "facts": self.facts,
        }

    @classmethod
    def _rebuild(cls, message: str, hint: str, facts: dict[str, Fact]) -> Self:
        error = cls.__new__(cls)
        KeepwarmError.__init__(error, message, hint=hint, **facts)
        return error


class CallerError(KeepwarmError):
    """The request or the configuration is wrong; the same call cannot succeed."""

    fault = "caller"


class ConfigError(CallerError):
    """A configuration does not hold: names the file, the key, what was found and what is allowed."""


class InvalidRequest(CallerError):
    """An option or a message of a call is not allowed."""


class UnknownModel(CallerError):
    """No model of that name is configured."""


class NeverFits(CallerError):
    """The model cannot fit even after evicting everything that may be evicted.

    Facts: `model`, `device`, `limit_bytes`, `reserved_bytes` (what may not be evicted),
    `requested_bytes`.
    """


class RoleViolation(CallerError):
    """A model does not meet what its role asks for (an evaluator below Q8_0, say)."""


class PromptTooLong(CallerError):
    """The prompt does not fit the context."""


class LoadError(KeepwarmError):
    """There is too much to do right now; trying again later can help."""

    fault = "load"


class QueueFull(LoadError):
    """The bounded queue has no place left. Facts: `waiting`, `limit`."""


class DeadlineExceeded(LoadError):
    """The request's deadline passed before it could be served."""


class AdmissionDenied(LoadError):
    """Nothing is admitted now: pins and leases hold the bytes, or a device is over its limit."""


class Cancelled(LoadError):
    """The request was withdrawn by its caller, or its client went away."""


class OutsideError(KeepwarmError):
    """An engine, an endpoint, a file or the keeper failed."""

    fault = "outside"


class EngineDied(OutsideError):
    """The engine's process ended while it was needed.

    Facts: `log_tail`, the engine's last lines; `requests`, how many used it; `suspected`, whether this
    one may be the cause.
    """


class EngineTimeout(OutsideError):
    """The engine made no progress for too long."""


class WorkerError(OutsideError):
    """The code of a Python model raised an exception; the model stays resident.

    Facts: `type` (the exception's class), `traceback`.
    """


class LoadFailed(OutsideError):
    """A model could not be loaded. Facts: `log_tail`, the engine's last lines."""


class OutOfMemory(LoadFailed):
    """The device refused the bytes. Facts: `device` where it is known."""


class EndpointUnavailable(OutsideError):
    """Nothing answers at the endpoint."""


class EndpointError(OutsideError):
    """The endpoint answered with an error. Facts: `status`, `type`, `param` where known."""


class BadModelFile(OutsideError):
    """A model file is damaged or impossible. Facts: `file`, `offset` (bytes from its start)."""


class MeasurementFailed(OutsideError):
    """The dry measurement of a model gave no result."""


class KeeperUnavailable(OutsideError):
    """The keeper is gone or did not start."""


class InternalError(KeepwarmError):
    """A bug of keepwarm; the message carries the events that led to it."""

    fault = "ours"


def _tree(root: type[KeepwarmError]) -> dict[str, type[KeepwarmError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_from_wire(data: dict[str, Any]) -> KeepwarmError:
    """The error that `to_wire` described; an unknown name becomes an `InternalError` that quotes it."""
    kind = _tree(KeepwarmError).get(str(data.get("error")))
    if kind is None:
        return InternalError(f"unknown error on the wire: {data!r}")
    return kind._rebuild(
        str(data.get("message", "")), str(data.get("hint", "")), dict(data.get("facts") or {})
    )
