"""Context and slots without a placement plan: shrunk within their range before a model is split."""

from __future__ import annotations

from collections.abc import Mapping

from backends.footprint.inspect import Inspector
from backends.footprint.placing import excess
from backends.gguf import GgufHeader
from budget.footprint import HOST, EngineArgs
from budget.placement.sizes import Size, shrink_note, whole_size
from shim.config import ModelEntry
from shim.placement.requested import fitted_args, sizes_of


def sized_args(
    args: EngineArgs,
    entry: ModelEntry,
    header: GgufHeader,
    inspector: Inspector,
    limits: Mapping[str, int],
) -> tuple[EngineArgs, str]:
    """The arguments with the context, slots and batches to use, and a note for people on what was shrunk.

    `limits` are bytes by device, the host's among them.

    Raises:
        KeepwarmError: a size cannot be measured.
    """
    sizes, shape = sizes_of(entry), header.shape()

    def excess_bytes(size: Size) -> int:
        sized = fitted_args(args, entry, shape, size)
        return excess(inspector, header, sized, limits, n_gpu_layers=entry.n_gpu_layers)

    may_split = set(limits) != {HOST} and entry.n_gpu_layers == "auto"
    chosen = whole_size(sizes, excess_bytes, 0, may_split=may_split)
    return fitted_args(args, entry, shape, chosen), shrink_note(chosen, sizes[0])
