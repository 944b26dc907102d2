"""What the verbs beside chat and embeddings have in common, without I/O.

Each is asked of a server over HTTP, or of a Python model by a payload of fixed names; both ways give the
same value.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from backends.base import Endpoint
from backends.kinds import Verb
from backends.openai.answers.fields import WrongField
from backends.openai.connections.bounds import CHAT_BYTES
from backends.openai.exchange import JSON_TYPE
from backends.openai.protocol import decode
from budget.errors import EndpointError, WorkerError

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Question:
    """A request of HTTP: where it goes, what is sent, and how many bytes its answer may have."""

    path: str
    body: bytes
    content_type: bytes = JSON_TYPE
    limit_bytes: int = CHAT_BYTES


class VerbRequest(Generic[_Value]):
    """One request of a verb."""

    verb: Verb

    @abstractmethod
    def question(self, endpoint: Endpoint) -> Question:
        """The request as a server gets it.

        Raises:
            InvalidRequest: it is not allowed, or the endpoint cannot honour it.
        """

    @abstractmethod
    def parsed(self, answer: Mapping[str, Any]) -> _Value:
        """The value of a server's answer.

        Raises:
            WrongField: it has not the protocol's shape.
        """

    @abstractmethod
    def payload(self) -> Mapping[str, Any]:
        """The request as a Python model gets it: the arguments of its call."""

    @abstractmethod
    def of_result(self, result: Any) -> _Value:
        """The value of what a Python model returned.

        Raises:
            WrongField: it is something else than this verb's result.
        """

    def read(self, raw: bytes) -> Mapping[str, Any]:
        """The answer of a server as an object."""
        return decode(raw)

    def parse(self, answer: Mapping[str, Any]) -> _Value:
        """As `parsed`.

        Raises:
            EndpointError: it has not the protocol's shape.
        """
        try:
            return self.parsed(answer)
        except WrongField as problem:
            raise EndpointError(
                f"the endpoint's answer has not the shape of {self.verb}: {problem}."
            ) from None

    def result(self, model: str, result: Any) -> _Value:
        """As `of_result`.

        Raises:
            WorkerError: it is something else than this verb's result.
        """
        try:
            return self.of_result(result)
        except WrongField as problem:
            raise WorkerError(
                f"{model} returned no result of {self.verb}: {problem}.",
                hint="docs/engines.md says what a Python model returns for each verb.",
                model=model,
            ) from None


def number(value: Any, name: str) -> float:
    """A finite number, of JSON or of numpy.

    Raises:
        WrongField: it is none.
    """
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(plain, int | float) and not isinstance(plain, bool) and math.isfinite(plain):
        return float(plain)
    raise WrongField(name, value, "a finite number")
