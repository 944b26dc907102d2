"""What a graph is made of: steps, how they are tried again, and what a step works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from harness.given import a_count, a_function, a_list, a_number, a_text, an_object, refused
from shim import (
    CallerError,
    Cancelled,
    EmbeddingReply,
    InvalidRequest,
    KeepwarmError,
    Reply,
    Shim,
)

if TYPE_CHECKING:
    from harness.graphs.graph import Graph

MOMENT_S: Final = 0.001
"""The shortest time-out of a step."""

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]] | str


LONGEST_REFUSAL_S: Final = 60.0
"""A step waits no longer than this because an error says that another try would be refused."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step is tried, and the pauses between: each `growth` times the one before.

    `errors` are the kinds that are worth another try. A mistake of the caller is none, by default.

    Raises:
        InvalidRequest: less than one attempt, a pause below 0, or a value of another type.
    """

    attempts: int = 1
    pause_s: float = 0.5
    growth: float = 2.0
    errors: tuple[type[BaseException], ...] = (KeepwarmError, OSError, TimeoutError)

    def __post_init__(self) -> None:
        a_count("`attempts`", self.attempts)
        a_number("`pause_s`", self.pause_s, 0)
        a_number("`growth`", self.growth, 0)
        for one in an_object("`errors`", self.errors, tuple):
            if not isinstance(one, type) or not issubclass(one, BaseException):
                raise refused("One of the errors", one, "a class of exceptions")

    def is_worth(self, error: BaseException, attempt: int) -> bool:
        """Whether another attempt follows one that ended with this error."""
        mistake = isinstance(error, CallerError) and CallerError not in self.errors
        return attempt < self.attempts and isinstance(error, self.errors) and not mistake

    def pause_after(self, attempt: int, error: BaseException | None = None) -> float:
        """Seconds after the attempt of this number, which counts from 1.

        They are more where the error says for how long another try would be refused.
        """
        refused_s = (error.retry_after_s or 0.0) if isinstance(error, KeepwarmError) else 0.0
        own_s = self.pause_s * self.growth ** (attempt - 1)
        return max(own_s, min(refused_s, LONGEST_REFUSAL_S))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a graph.

    Args:
        name: different for every step; also the name of its result.
        run: a function of a `StepContext`, a coroutine function, or a `Graph`, whose inputs are this
            step's needs of the same names; that of `over` is the item. A function runs on a thread of
            its own.
        needs: names of steps and inputs whose values it gets. It starts when all are there.
        model: the model that it uses, or several; the first is what `StepContext.chat` asks.
        over: one of its needs, a list. The step runs once for each item, and its result is the list of
            results.
        when: decides by the values whether it runs. One that does not is skipped, and so are steps that
            need it.
        retry: how often it is tried.
        timeout_s: seconds of each try. After it the step's model calls are withdrawn.

    Raises:
        InvalidRequest: a time-out under a millisecond, or an argument of another type.
    """

    name: str
    run: Callable[[StepContext], Any] | Graph
    needs: Sequence[str] = ()
    model: str | Sequence[str] = ()
    over: str | None = None
    when: Callable[[Mapping[str, Any]], bool] | None = None
    retry: Retry = field(default_factory=Retry)
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        a_text("The name of a step", self.name)
        a_list(f"The needs of step {self.name}", self.needs, str)
        if not isinstance(self.model, str):
            a_list(f"The models of step {self.name}", self.model, str)
        an_object(f"`over` of step {self.name}", self.over, (str, type(None)))
        if self.when is not None:
            a_function(f"`when` of step {self.name}", self.when)
        an_object(f"`retry` of step {self.name}", self.retry, Retry)
        if self.timeout_s is not None:
            a_number(f"`timeout_s` of step {self.name}", self.timeout_s, MOMENT_S)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it uses, the one that it asks first."""
        return (self.model,) if isinstance(self.model, str) else tuple(self.model)


class OpenCalls:
    """The model calls of one attempt that are under way. Once it is closed no call begins or goes on.

    Args:
        loop: the run's.
        asks: told the model of each call that begins.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, asks: Callable[[str], None]) -> None:
        self.loop, self.asks = loop, asks
        self._lock = Lock()
        self._open: set[Future[Any]] | None = set()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a call on the run's loop, from another thread.

        Raises:
            Cancelled: the attempt is over.
        """
        with self._lock:
            if self._open is None:
                call.close()
                raise Cancelled("The step's time is over, or its run was cancelled.")
            future = asyncio.run_coroutine_threadsafe(call, self.loop)
            self._open.add(future)
        try:
            return future.result()
        finally:
            with self._lock:
                if self._open is not None:
                    self._open.discard(future)

    def close(self) -> None:
        """Withdraw the calls that are under way; their leases are given back."""
        with self._lock:
            left, self._open = self._open or set(), None
        for future in left:
            future.cancel()


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step works with: the values of its needs, its item, and calls of its model.

    The calls can be used from a function and awaited from a coroutine function (`achat`, `aembed`). They
    end when the step's time is over or the run is cancelled.
    """

    shim: Shim
    step: Step
    values: Mapping[str, Any]
    calls: OpenCalls
    item: Any = None
    index: int = 0
    attempt: int = 1

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise InvalidRequest(
                f"The step {self.step.name} does not wait for {name!r}.",
                hint=f"Its needs are: {', '.join(self.values) or 'none'}.",
            )
        return self.values[name]

    def chat(self, messages: Messages, model: str | None = None, **options: Any) -> Reply:
        """`Shim.chat` with the step's model.

        Raises:
            KeepwarmError: as `Shim.chat`.
        """
        return self._wait(self.achat(messages, model, **options))

    def embed(self, texts: Sequence[str] | str, model: str | None = None) -> EmbeddingReply:
        """`Shim.embed` with the step's model.

        Raises:
            KeepwarmError: as `Shim.embed`.
        """
        return self._wait(self.aembed(texts, model))

    async def achat(self, messages: Messages, model: str | None = None, **options: Any) -> Reply:
        """As `chat`, awaited."""
        return await self.shim.achat(self._model(model), messages, **options)

    async def aembed(self, texts: Sequence[str] | str, model: str | None = None) -> EmbeddingReply:
        """As `embed`, awaited."""
        return await self.shim.aembed(self._model(model), texts)

    def _model(self, given: str | None) -> str:
        if given is not None and given not in self.step.models:
            raise InvalidRequest(
                f"The step {self.step.name} does not say that it uses {given}.",
                hint="Name it in `model`, so that it can be made ready.",
            )
        if given is None and not self.step.models:
            raise InvalidRequest(
                f"The step {self.step.name} has no model to ask.", hint="Give the step a `model`."
            )
        model = given or self.step.models[0]
        self.calls.asks(model)
        return model

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self.calls.loop:
            call.close()
            raise InvalidRequest(
                f"The coroutine of step {self.step.name} called `chat`, which blocks.",
                hint="Await `achat` or `aembed` there.",
            )
        return self.calls.wait(call)
