"""The compute buffer: the peak of the graph's live tensors for one full micro-batch.

What overlaps is decided by ggml's allocator (`ggml/src/ggml-alloc.c`), which changes between builds.
So a buffer is the largest of a few weighted sums of `budget.estimate.features`; `tools/fit_compute.py`
fits the weights to dry runs, per architecture, side, kernels and place of the split, and writes
`budget/estimate/compute_data.py`. The host's output buffer is a formula (`src/llama-context.cpp`,
`output_reserve`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from budget.errors import MeasurementFailed
from budget.estimate.architectures import ARCHITECTURES, architecture
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
_SIDES: Final[tuple[Side, Side]] = ("host", "device")
_FLOAT_BYTES: Final = 4
ALIGNMENT: Final = 32
_COLUMN: Final = {name: i for i, name in enumerate(FEATURES)}


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


@dataclass(frozen=True, slots=True, eq=False)
class SideSums:
    """The sums of one side with one set of kernels: weights (sums x features), and of each its place
    of the split, by position in `regimes`."""  # noqa: D205, D209

    weights: Matrix
    places: NDArray[np.int64]


@cache
def sums_of(name: str, side: Side, kernels: str, *, has_output: bool = True) -> SideSums:
    """The sums of an architecture, for every place of the split.

    With an output layer on that side, its own phase is among them.

    Raises:
        MeasurementFailed: the architecture is not known, or not with these kernels.
    """
    rows: list[Matrix] = []
    places: list[int] = []
    for number, (place, _, _) in enumerate(regimes(2)[_SIDES.index(side)]):
        sums = architecture(name).get(f"{side}/{place}/{kernels}")
        if sums is None:
            raise MeasurementFailed(
                f"there is no closed form for {name!r} with these KV types and this attention.",
                hint="Measure it by dry run.",
                architecture=name,
                group=f"{side}/{place}/{kernels}",
            )
        phase = _OUTPUT_PHASE.get(f"{side}/{place}")
        for text in (*sums, phase) if has_output and phase else sums:
            rows.append(_weights(text))
            places.append(number)
    return SideSums(np.array(rows), np.array(places))


def _weights(text: str) -> Matrix:
    """A sum as it is written (`6 ids + 4 embd`) as a row of weights."""
    row = np.zeros(len(FEATURES))
    for term in text.split(" + ") if text else ():
        weight, _, feature = term.partition(" ")
        row[_COLUMN[feature]] = float(weight)
    return row


@lru_cache(maxsize=256)
def _place_of_rows(side: Side, n_layers: int) -> NDArray[np.int64]:
    """For n_gpu_layers 0 to n_layers + 1 the position of its place in `regimes`; -1 for none."""
    found = np.full(n_layers + 2, -1)
    for number, (_, first, last) in enumerate(regimes(n_layers)[_SIDES.index(side)]):
        found[first:last] = number
    return found


def prepare_sums(shape: ModelShape) -> None:
    """Have the sums of the usual kernels at hand, if the architecture is known."""
    if shape.architecture in ARCHITECTURES:
        for side in _SIDES:
            sums_of(shape.architecture, side, "flash", has_output=shape.causal)


def compute_by_layers(shape: ModelShape, args: EngineArgs) -> tuple[Bytes, Bytes]:
    """Compute buffers of the host and of the device for n_gpu_layers 0 to n_layers + 1, in bytes.

    Raises:
        MeasurementFailed: the architecture is not known.
    """
    kernels = mode(shape, args)
    scales = feature_scales(shape, args)
    found = []
    for side, counts in zip(_SIDES, feature_counts(shape), strict=True):
        sums = sums_of(shape.architecture, side, kernels, has_output=shape.causal)
        # Not `@`: the first product of a process wakes up the BLAS library's threads.
        each = np.einsum("kf,sf->ks", counts.rows, sums.weights * scales)
        there = _place_of_rows(side, shape.n_layers)[:, None] == sums.places
        n_bytes = np.where(there, each[counts.row_of], 0).max(axis=1).astype(np.int64)
        found.append(-(-n_bytes // ALIGNMENT) * ALIGNMENT)
    return found[0], found[1]
