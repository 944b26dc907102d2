"""Contexts and slots with a minimum and a preferred value: which of the possible sizes is taken.

Sizes are (context, slots), the preferred first, then ever smaller ones. The planner weighs them for all
models together (`planner`); here one model is looked at alone, as a start without a placement plan does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Size = tuple[int, int]


def whole_size(
    sizes: Sequence[Size], needed_bytes: Callable[[Size], int], limit_bytes: int, *, may_split: bool
) -> Size:
    """The largest size with which a model is whole within the limit.

    `needed_bytes` are those of the whole model; it is asked for no more sizes than needed. Where none
    is small enough, a model that may be split keeps its preferred size, because shrinking did not
    spare it the split; another one gets its least, which is the nearest to fitting.
    """
    if len(sizes) == 1:
        return sizes[0]
    for size in sizes:
        if needed_bytes(size) <= limit_bytes:
            return size
    return sizes[0] if may_split else sizes[-1]


def shrink_note(chosen: Size, preferred: Size) -> str:
    """What was shrunk, for people; empty when nothing was."""
    if chosen == preferred:
        return ""
    return (
        f"context {chosen[0]} instead of {preferred[0]} and {chosen[1]} instead of "
        f"{preferred[1]} slots, shrunk before splitting"
    )
