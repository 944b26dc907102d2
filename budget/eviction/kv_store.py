"""Which KV state is worth keeping while its model is away, and what has to go for it.

Pure decisions. A slot's state is saved when an engine is evicted and restored when it returns; the
gain is the prompt evaluation that is spared, the cost is the time that both take, and both are
figures of that engine as measured. Restored state that no request continues lowers the expected gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from budget.footprint import EngineArgs
from budget.memory.shape import ModelShape

MIN_TOKENS: Final = 16
"""Less than this is not looked at."""

FORGET: Final = 0.8
"""What is left of older figures when a new one is added."""

RECOVERY: Final = 0.05
"""How far an eviction without a save moves the expected reuse back to 1, so that it is tried again."""


def carries_kv(shape: ModelShape, args: EngineArgs) -> bool:
    """Whether restored KV state spares an engine its prompt evaluation.

    Not with a sliding window that is kept as one (`swa_full` keeps everything, and is booked so),
    not with recurrent state, and not beside a draft model, whose own cache is not saved. Embedding
    engines have no conversations.
    """
    if args.embeddings or args.draft_model is not None or shape.is_recurrent:
        return False
    return args.swa_full or not (shape.sliding_window and any(shape.window_layers))


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds per token as a decayed ratio of sums, so that many tokens count more than few."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def s_per_token(self) -> float | None:
        """None until something was measured."""
        return self.seconds / self.tokens if self.tokens > 0 else None

    def seen(self, tokens: int, seconds: float) -> Rate:
        """The rate with one more measurement."""
        if tokens <= 0 or seconds < 0:
            return self
        return Rate(self.tokens * FORGET + tokens, self.seconds * FORGET + seconds)


@dataclass(frozen=True, slots=True)
class KvFigures:
    """What is known of one engine: three speeds, and the share of restored tokens that was used."""

    evaluation: Rate = Rate()
    save: Rate = Rate()
    restore: Rate = Rate()
    reuse: float = 1.0

    def reused(self, restored_tokens: int, used_tokens: int) -> KvFigures:
        """The figures after a residency of the engine that used so many of its restored tokens."""
        if restored_tokens <= 0:
            return self
        share = min(1.0, used_tokens / restored_tokens)
        return replace(self, reuse=self.reuse * FORGET + share * (1 - FORGET))

    def skipped(self) -> KvFigures:
        """The figures after state was not saved for its cost's sake: a little more hopeful."""
        return replace(self, reuse=self.reuse + (1 - self.reuse) * RECOVERY)

    def gain_s(self, tokens: int) -> float | None:
        """Seconds of prompt evaluation that state of so many tokens is expected to spare."""
        rate = self.evaluation.s_per_token
        return None if rate is None else tokens * rate * self.reuse

    def cost_s(self, tokens: int) -> float:
        """Seconds that saving and restoring take; what was not measured yet counts as nothing."""
        rates = (self.save.s_per_token or 0.0, self.restore.s_per_token or 0.0)
        return tokens * sum(rates)

    def worth_it(self, tokens: int) -> bool:
        """Whether carrying so many tokens over gains more than it costs; tried once when unknown."""
        if tokens < MIN_TOKENS:
            return False
        gain_s = self.gain_s(tokens)
        return gain_s is None or gain_s > self.cost_s(tokens)

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KvFigures:
        """The figures that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: the data is something else.
        """
        rates = [
            Rate(float(data[name]["tokens"]), float(data[name]["seconds"]))
            for name in ("evaluation", "save", "restore")
        ]
        reuse = float(data["reuse"])
        if not 0 <= reuse <= 1 or any(r.tokens < 0 or r.seconds < 0 for r in rates):
            raise ValueError("figures out of range")
        return cls(rates[0], rates[1], rates[2], reuse)


@dataclass(frozen=True, slots=True)
class SlotState:
    """What one slot of an engine holds when the engine is about to leave."""

    slot: int
    tokens: int


def choose_saves(
    slots: Iterable[SlotState], figures: KvFigures, bytes_per_token: float, limit_bytes: int
) -> list[SlotState]:
    """The slots to save, the largest gain first, as many as the byte budget holds."""
    chosen: list[SlotState] = []
    left = limit_bytes
    for state in sorted(slots, key=lambda s: (-s.tokens, s.slot)):
        size = int(state.tokens * bytes_per_token)
        if figures.worth_it(state.tokens) and size <= left:
            chosen.append(state)
            left -= size
    return chosen


@dataclass(frozen=True, slots=True)
class SavedState:
    """A file of saved state: of which engine, its bytes, and when it was last of use."""

    key: str
    name: str
    size_bytes: int
    used_at: float


def make_room(
    states: Iterable[SavedState], limit_bytes: int, coming_bytes: int = 0
) -> list[SavedState]:
    """What has to be deleted, least recently used first, for all and what comes to fit the budget."""
    ordered = sorted(states, key=lambda s: (s.used_at, s.key, s.name))
    excess = sum(s.size_bytes for s in ordered) + coming_bytes - limit_bytes
    gone = []
    for state in ordered:
        if excess <= 0:
            break
        gone.append(state)
        excess -= state.size_bytes
    return gone


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def choose_restores(
    slots: int,
    saved: Mapping[int, Sequence[int]],
    warm: Sequence[int] | None,
    warm_tail: int = 32,
) -> dict[int, int | None]:
    """What each slot gets back: a slot's own saved state, or None for the warm prompt's.

    Args:
        slots: how many slots the engine has.
        saved: the tokens of each slot's saved conversation.
        warm: the tokens of the warm prompt's state; None when there is none.
        warm_tail: tokens at the end of the warm prompt's state that a conversation need not share
            (the template's end, the token that was generated).

    Returns:
        By slot: the slot whose conversation it takes, or None for the warm prompt. Slots that get
        nothing are not in it. Every conversation that does not begin with the warm prompt gives its
        place up when no slot would be left that does: the smallest first.
    """
    restores: dict[int, int | None] = {slot: slot for slot in saved if slot < slots}
    if warm is None:
        return restores
    restores.update({slot: None for slot in range(slots) if slot not in restores})
    needed = max(1, len(warm) - warm_tail)
    if all(
        slot is not None and common_prefix(saved[slot], warm) < needed for slot in restores.values()
    ):
        restores[min(saved, key=lambda s: (len(saved[s]), s))] = None
    return restores
