"""What became of the requests of a campaign, and what was left behind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

MUST_BE_ZERO = ("untyped", "hung", "lost", "ghost_leases", "orphans", "leaks")


@dataclass
class Tally:
    """Counts over all rounds.

    Attributes:
        faults: by kind.
        requests: begun by the callers; each is answered, failed, given up, killed with its caller or lost.
        calls: requests and their retries.
        answered: requests, at the first or the second attempt.
        failed: requests by the type of their last error.
        retried: requests by the type of their first error, of those that were sent once more.
        retried_ok: how many of those were answered.
        given_up: cancelled, or interrupted, by their own caller.
        with_caller: in progress when their caller was killed.
        untyped: errors that are none of keepwarm's, InternalError among them, and wrong answers.
        hung: calls over their bound, and programs that do not end.
        lost: requests without any outcome.
        ghost_leases: leases without a request, engines that stay half-way, books that do not balance.
        orphans: processes that belong to no engine.
        leaks: descriptors, sockets, shared memory and files that nothing uses.
        longest_call_s: plans excepted, which are three calls.
    """

    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    calls: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    retried_ok: int = 0
    given_up: int = 0
    with_caller: int = 0
    untyped: int = 0
    hung: int = 0
    lost: int = 0
    ghost_leases: int = 0
    orphans: int = 0
    leaks: int = 0
    longest_call_s: float = 0.0
    rounds: int = 0
    seconds: float = 0.0

    @property
    def retried_ok_share(self) -> float:
        """The share of retried requests that were answered then."""
        retried = sum(self.retried.values())
        return self.retried_ok / retried if retried else 1.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not any(getattr(self, name) for name in MUST_BE_ZERO)

    def as_json(self) -> str:
        """The last line."""
        told: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        told["retried_ok_share"] = self.retried_ok_share
        for name, value in told.items():
            if isinstance(value, Counter):
                told[name] = dict(value.most_common())
            elif isinstance(value, float):
                told[name] = round(value, 4)
        return json.dumps(told)

    def add(self, other: Tally) -> None:
        """Another campaign's counts on top."""
        for one in fields(self):
            before, more = getattr(self, one.name), getattr(other, one.name)
            longest = one.name == "longest_call_s"
            setattr(self, one.name, max(before, more) if longest else before + more)
