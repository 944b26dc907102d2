"""Context and slots without a placement plan: shrunk within their range before a model is split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from backends.footprint.inspect import Inspector
from backends.footprint.placing import excess
from backends.gguf import GgufHeader
from budget.footprint import HOST, EngineArgs
from budget.placement.sizes import Size, shrink_note, whole_size
from shim.config import ModelEntry
from shim.placement.requested import sizes_of


def sized_args(
    args: EngineArgs,
    entry: ModelEntry,
    header: GgufHeader,
    inspector: Inspector,
    limits: Mapping[str, int],
) -> tuple[EngineArgs, str]:
    """The arguments with the context and slots to use, and a note for people on what was shrunk.

    `limits` are bytes by device, the host's among them.

    Raises:
        KeepwarmError: a size cannot be measured.
    """
    sizes = sizes_of(entry)

    def excess_bytes(size: Size) -> int:
        sized = replace(args, n_ctx=size[0], slots=size[1])
        return excess(inspector, header, sized, limits, n_gpu_layers=entry.n_gpu_layers)

    may_split = set(limits) != {HOST} and entry.n_gpu_layers == "auto"
    chosen = whole_size(sizes, excess_bytes, 0, may_split=may_split)
    return replace(args, n_ctx=chosen[0], slots=chosen[1]), shrink_note(chosen, sizes[0])
