"""The compute buffer: the peak of the graph's live tensors for one full micro-batch.

What overlaps is decided by ggml's allocator (`ggml/src/ggml-alloc.c`), which changes between builds.
So a buffer is the largest of a few weighted sums of `budget.estimate.features`; `tools/fit_compute.py`
fits the weights to dry runs, per architecture, side, kernels and place of the split, and writes
`budget/estimate/compute_data.py`. The host's output buffer is a formula (`src/llama-context.cpp`,
`output_reserve`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from budget.errors import MeasurementFailed
from budget.estimate.architectures import architecture
from budget.estimate.arguments import effective, outputs_per_slot
from budget.estimate.features import (
    FEATURES,
    Matrix,
    feature_counts,
    feature_scales,
    mode,
)
from budget.estimate.shape import ModelShape
from budget.footprint import EngineArgs

Bytes = NDArray[np.int64]
Side = Literal["host", "device"]
_FLOAT_BYTES: Final = 4
_ALIGNMENT: Final = 32
_TERM: Final = re.compile(r"(\d+) (\w+)")


def output_rows(shape: ModelShape, args: EngineArgs) -> int:
    """Rows that the host's output buffer grows to: per slot and drafted token, or a whole batch."""
    sizes = effective(args, causal=shape.causal)
    return max(outputs_per_slot(args) * args.slots, sizes.n_batch if args.embeddings else 0)


def output_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """The host's output buffer at its largest: rows of logits, and of embeddings where asked for.

    An embedding engine starts with a row per slot and grows with the longest batch it has seen; the
    rows of logits are allocated even where the model has no output layer (`output_reserve`).
    """
    width = shape.n_vocab + (shape.n_embd if args.embeddings else 0)
    return _FLOAT_BYTES * width * output_rows(shape, args)


def regimes(n_layers: int) -> tuple[tuple[tuple[str, int, int], ...], ...]:
    """The ranges of n_gpu_layers (name, first, one past the last) of host and of device.

    On the device the output comes first, then the last layer, whose feed-forward sees the output
    rows alone; with every layer there, the host only looks up embeddings.
    """
    everything = n_layers + 1
    host = (("all", 0, 1), ("some", 1, everything), ("none", everything, everything + 1))
    device = (
        ("output", 1, 2),
        ("last", 2, min(3, everything)),
        ("some", 3, everything),
        ("all", everything, everything + 1),
    )
    return host, device


# While logits are computed, the last activations (on the host also their copy) are all that lives
# beside them. The largest buffer of an embedding engine, whose every token has a row.
_OUTPUT_PHASE: Final = {
    "host/all": "1 logits + 2 output_rows",
    "device/output": "1 logits + 1 output_rows",
    "device/last": "1 logits + 1 output_rows",
    "device/some": "1 logits + 1 output_rows",
    "device/all": "1 logits + 1 output_rows",
}


@cache
def weights_of(name: str, group: str, *, has_output: bool = True) -> Matrix:
    """The weights (sums x features) of `side/place/kernels` for an architecture.

    With an output layer on that side, its own phase is among them.

    Raises:
        MeasurementFailed: the architecture is not known, or not with these kernels.
    """
    sums = architecture(name).get(group)
    if sums is None:
        raise MeasurementFailed(
            f"there is no closed form for {name!r} with these KV types and this attention.",
            hint="Measure it by dry run.",
            architecture=name,
            group=group,
        )
    phase = _OUTPUT_PHASE.get(group.rpartition("/")[0])
    if has_output and phase:
        sums = (*sums, phase)
    found = np.zeros((len(sums), len(FEATURES)))
    for row, text in zip(found, sums, strict=True):
        for weight, feature in _TERM.findall(text):
            row[FEATURES.index(feature)] = float(weight)
    return found


def compute_by_layers(shape: ModelShape, args: EngineArgs) -> tuple[Bytes, Bytes]:
    """Compute buffers of the host and of the device for n_gpu_layers 0 to n_layers + 1, in bytes.

    Raises:
        MeasurementFailed: the architecture is not known.
    """
    sides: tuple[Side, Side] = ("host", "device")
    kernels = mode(shape, args)
    scales = feature_scales(shape, args)
    counts = feature_counts(shape)
    found = []
    for side, matrix, ranges in zip(sides, counts, regimes(shape.n_layers), strict=True):
        n_bytes = np.zeros(len(matrix))
        for name, first, last in ranges:
            if first < last:
                group = f"{side}/{name}/{kernels}"
                weights = weights_of(shape.architecture, group, has_output=shape.causal)
                sums = weights * scales
                n_bytes[first:last] = (matrix[first:last] @ sums.T).max(axis=1)
        found.append(-(-n_bytes.astype(np.int64) // _ALIGNMENT) * _ALIGNMENT)
    return found[0], found[1]
