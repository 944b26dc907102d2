"""Which set of candidates leaves: enough bytes on every device, the least loss, no redundant member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from budget.actions import EvictionCandidate
from budget.eviction.smallest_sets import EXACT_LIMIT, set_of_least_loss

Shortage = Mapping[str, int]


@dataclass(slots=True)
class Need:
    """What an eviction is for: the engine that wants bytes, those missing by device, and the candidates."""

    wanted: str
    shortage: Mapping[str, int]
    candidates: Sequence[EvictionCandidate]
    now: float


def choose_victims(
    candidates: Sequence[EvictionCandidate], shortage: Shortage, *, ordered: bool
) -> list[EvictionCandidate] | None:
    """The candidates that leave so that `shortage` bytes come free on every device named.

    Args:
        candidates: engines that may leave.
        shortage: positive bytes missing, by device.
        ordered: take strictly from the least loss up, instead of the least total loss.

    Returns:
        The victims, least loss first, with no member whose bytes are not needed; None when even
        all candidates together free too little.
    """
    if len(shortage) == 1:
        ((device, missing),) = shortage.items()
        return _on_one_device(candidates, device, missing, ordered=ordered)
    useful = [c for c in candidates if any(d in shortage and b > 0 for d, b in c.bookings)]
    useful.sort(key=lambda c: (c.loss, c.engine_id))
    if not frees_enough(useful, shortage):
        return None
    if ordered:
        return _pruned(_first_enough(useful, shortage), shortage)
    greedy = _pruned(_first_enough(_by_density(useful, shortage), shortage), shortage)
    if len(useful) > EXACT_LIMIT:
        simple = _pruned(_first_enough(useful, shortage), shortage)
        return min(greedy, simple, key=_total_loss)
    return _exact(useful, shortage, greedy)


def _on_one_device(
    candidates: Sequence[EvictionCandidate], device: str, missing: int, *, ordered: bool
) -> list[EvictionCandidate] | None:
    losses = [candidate.loss for candidate in candidates]
    sizes = [dict(candidate.bookings).get(device, 0) for candidate in candidates]
    found = set_of_least_loss(losses, sizes, missing, ordered=ordered)
    if found is None:
        return None
    return sorted([candidates[place] for place in found], key=lambda c: (c.loss, c.engine_id))


def _total_loss(chosen: Sequence[EvictionCandidate]) -> float:
    return sum(c.loss for c in chosen)


def frees_enough(chosen: Sequence[EvictionCandidate], shortage: Shortage) -> bool:
    """Whether these free enough on every device named."""
    left = dict(shortage)
    for candidate in chosen:
        for device, amount in candidate.bookings:
            if device in left:
                left[device] -= amount
    return all(amount <= 0 for amount in left.values())


def _first_enough(
    order: Sequence[EvictionCandidate], shortage: Shortage
) -> list[EvictionCandidate]:
    """The shortest prefix that frees enough, without candidates that free nothing still missing."""
    left = {device: amount for device, amount in shortage.items() if amount > 0}
    chosen = []
    for candidate in order:
        if not left:
            break
        if not any(device in left for device, _ in candidate.bookings):
            continue
        chosen.append(candidate)
        for device, amount in candidate.bookings:
            if device in left:
                left[device] -= amount
                if left[device] <= 0:
                    del left[device]
    return chosen


def _pruned(chosen: list[EvictionCandidate], shortage: Shortage) -> list[EvictionCandidate]:
    """The set without redundant members: what costs most to lose stays first, if the rest suffices."""
    kept = list(chosen)
    for candidate in sorted(chosen, key=lambda c: (-c.loss, c.engine_id)):
        rest = [c for c in kept if c is not candidate]
        if frees_enough(rest, shortage):
            kept = rest
    return sorted(kept, key=lambda c: (c.loss, c.engine_id))


def _by_density(
    candidates: Sequence[EvictionCandidate], shortage: Shortage
) -> list[EvictionCandidate]:
    def density(candidate: EvictionCandidate) -> float:
        useful = sum(min(b, shortage.get(d, 0)) for d, b in candidate.bookings)
        return candidate.loss / max(1, useful)

    return sorted(candidates, key=density)


def _exact(
    candidates: list[EvictionCandidate], shortage: Shortage, start: list[EvictionCandidate]
) -> list[EvictionCandidate]:
    """The least total loss by depth-first branch and bound, starting from a known set."""
    best, best_loss = start, _total_loss(start)

    def descend(
        index: int, chosen: list[EvictionCandidate], loss: float, left: dict[str, int]
    ) -> None:
        nonlocal best, best_loss
        if all(amount <= 0 for amount in left.values()):
            if loss < best_loss:
                best, best_loss = list(chosen), loss
            return
        if index == len(candidates):
            return
        candidate = candidates[index]
        if loss + candidate.loss < best_loss:
            taken = dict(left)
            for device, amount in candidate.bookings:
                if device in taken:
                    taken[device] -= amount
            chosen.append(candidate)
            descend(index + 1, chosen, loss + candidate.loss, taken)
            chosen.pop()
        descend(index + 1, chosen, loss, left)

    descend(0, [], 0.0, dict(shortage))
    return _pruned(best, shortage)
