"""In what the architectures' graphs differ, and which of a model's layers a graph needs.

Sources: `src/models/*.cpp` of llama.cpp, whose version is `LLAMA_BUILD`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from budget.memory.shape import ModelShape

LLAMA_BUILD: Final = "0.3.36"
"""The llama-cpp-python whose llama.cpp these graphs are of."""

_SAME_KIND: Final = 3
_LONGEST_LEAD: Final = 5
_LONGEST_PERIOD: Final = 13


@dataclass(frozen=True, slots=True)
class Layout:
    """How an architecture's graph is built; what follows from a file's tensors is not repeated here.

    `late` rows are those that logits are wanted of where every token goes through the last layer: before
    the last norm (`layer`) or after it (`norm`).
    """

    layer: Literal[
        "attention", "mamba", "mamba2", "falcon-h1", "encoder", "delta", "short", "gemma4"
    ] = "attention"
    joined: bool = False
    """Gate and `up` of the feed-forward are one matrix."""
    scaled_queries: bool = False
    scaled_embedding: bool = False
    late: Literal["", "layer", "norm"] = ""
    positions: int = 1
    """Numbers by token (`n_pos_per_embd`)."""
    unrotated: int = 0
    """Every so many layers there is one without rotary embedding."""
    logits_beside_pooling: bool = True


LAYOUTS: Final[Mapping[str, Layout]] = {
    "llama": Layout(),
    "mistral3": Layout(),
    "smollm3": Layout(unrotated=4),
    "qwen2": Layout(),
    "qwen3": Layout(),
    "qwen3moe": Layout(),
    "glm4moe": Layout(),
    "phi3": Layout(joined=True, scaled_queries=True),
    "gemma2": Layout(scaled_queries=True, scaled_embedding=True),
    "gemma3": Layout(scaled_queries=True, scaled_embedding=True),
    "gemma4": Layout("gemma4", scaled_embedding=True, late="norm"),
    "gpt-oss": Layout(late="layer"),
    "deepseek2": Layout(),
    "qwen35": Layout("delta", late="norm", positions=4),
    "qwen35moe": Layout("delta", late="norm", positions=4),
    "lfm2": Layout("short", logits_beside_pooling=False),
    "lfm2moe": Layout("short", logits_beside_pooling=False),
    "mamba": Layout("mamba"),
    "mamba2": Layout("mamba2"),
    "falcon-h1": Layout("falcon-h1"),
    "bert": Layout("encoder"),
    "nomic-bert": Layout("encoder"),
}

NORM_FIRST: Final = frozenset(
    name for name, layout in LAYOUTS.items() if layout.layer != "encoder"
) - {"lfm2moe"}
"""Architectures whose layers all begin with a norm of what the layer before gives."""


def has_graph(shape: ModelShape) -> bool:
    """Whether the graph of this model is known."""
    layout = LAYOUTS.get(shape.architecture)
    return layout is not None and shape.causal == (layout.layer != "encoder")


def representative_layers(shape: ModelShape, sides: Sequence[int]) -> list[int]:
    """Layers whose graph has the peak of the whole: of each side both ends, and whole periods left out.

    `sides` has an entry for each layer.
    """
    t, every = shape.layers, range(shape.n_layers)
    experts = [bool(shape.n_experts) and i >= shape.n_layers_dense_lead for i in every]
    unrotated = LAYOUTS[shape.architecture].unrotated
    rotated = [not unrotated or bool((i + 1) % unrotated) for i in every]
    columns = (t.windowed, t.recurrent, t.width_q, t.width_k, t.width_v, t.ff, experts, rotated)
    kinds = list(zip(*columns, strict=True))[: len(sides)]
    found: list[int] = []
    start = 0
    for end in range(1, len(sides) + 1):
        if end == len(sides) or sides[end] != sides[start]:
            found += _ends(kinds, start, end)
            start = end
    return found


def _ends(kinds: Sequence[object], start: int, end: int) -> list[int]:
    lead, period = _repetition(kinds[start:end])
    kept = max(period, _SAME_KIND)
    # Holes are filled from layer to layer in turn, so that an even number is left out.
    step = period * (1 + period % 2)
    spare = max(end - start - lead - 2 * kept, 0) // step * step
    begin = start + lead + kept
    return [*range(start, min(begin, end)), *range(min(begin + spare, end), end)]


def _repetition(kinds: Sequence[object]) -> tuple[int, int]:
    """How many come first that are otherwise, and after how many the others repeat."""
    for lead in range(min(_LONGEST_LEAD, len(kinds))):
        rest = kinds[lead:]
        for period in range(1, _LONGEST_PERIOD):
            if rest[period:] == rest[: len(rest) - period]:
                return lead, period
    return 0, max(len(kinds), 1)
