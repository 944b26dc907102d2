"""A shim whose models answer what a test tells, without an engine or a keeper."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, Self, cast

from shim import Reply, Shim
from shim.calls.declaring import Plan
from shim.config import Role
from shim.model_info import ModelInfo

Answer = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], str]


class _NoPlan:
    """Declared uses, which no keeper hears."""

    def __init__(self) -> None:
        self.declared: list[list[str]] = []

    def declare(self, models: Sequence[str]) -> None:
        """Note the uses."""
        self.declared.append(list(models))

    def close(self) -> None:
        """Withdraw nothing."""

    def current(self) -> AbstractContextManager[None]:
        """No request of these tests consumes a use."""
        return nullcontext()

    async def adeclare(self, models: Sequence[str]) -> None:
        """As `declare`."""
        self.declare(models)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_failure: object) -> None:
        self.close()


class ToldShim(Shim):
    """Each model answers by its function; `asked` has the models in the order in which they were asked."""

    def __init__(
        self,
        answers: Mapping[str, Answer],
        bits: Mapping[str, float] | None = None,
        roles: Mapping[str, Role] | None = None,
        far: Collection[str] = (),
    ) -> None:
        super().__init__({"models": {name: {"url": "http://127.0.0.1:9/v1"} for name in answers}})
        self.answers, self.bits = dict(answers), dict(bits or {})
        self.roles, self.far = dict(roles or {}), far
        self.asked: list[str] = []
        self.limit = 1000
        self.uses = _NoPlan()
        self._lock = Lock()

    def chat(self, model: str, messages: Any, **options: Any) -> Reply:
        """The told answer."""
        with self._lock:
            self.asked.append(model)
        return Reply(
            model, self.answers[model](messages, options), finish_reason="stop", total_s=0.5
        )

    def plan(self, models: Sequence[str] = (), *, any_order: bool = False) -> Plan:
        """A plan that only notes."""
        if models:
            self.uses.declare(models)
        return cast("Plan", self.uses)

    def what_if(self, models: Sequence[str]) -> dict[str, Any]:
        """Models of 60 bytes, in a budget of as many bytes as told."""
        together = 60 * len(set(models)) <= self.limit
        bytes_of = {model: {"host": 60} for model in models}
        return {"together": together, "bytes": bytes_of, "limits": {"host": self.limit}}

    def describe(self, model: str) -> ModelInfo:
        """A model of as many bits as told; those of one that is far are unknown."""
        bits = None if model in self.far else self.bits.get(model, 16.0)
        return ModelInfo(
            model,
            self.roles.get(model),
            remote=model in self.far,
            identity=model,
            min_bits_per_weight=bits,
            kv_bytes_per_token=1024,
        )


def scores(**given: float) -> str:
    """A judge's answer in the shape of a rubric with these dimensions."""
    return json.dumps({name: {"reasons": f"{name} is so", "score": s} for name, s in given.items()})


def in_turn(*texts: str) -> Answer:
    """Answers one after the other; the last one goes on."""
    left = list(texts)
    return lambda _messages, _options: left.pop(0) if len(left) > 1 else left[0]
