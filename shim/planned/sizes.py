"""Context and slots where there is no plan: shrunk, within their range, before a model is split."""

from __future__ import annotations

from dataclasses import replace

from backends.footprint.inspect import Inspector
from backends.gguf import GgufHeader
from budget.footprint import HOST, EngineArgs
from budget.planning.sizes import Size, shrink_note, whole_size
from shim.config import ModelEntry
from shim.planned.asked import sizes_of


def sized_args(
    args: EngineArgs,
    entry: ModelEntry,
    header: GgufHeader,
    inspector: Inspector,
    *,
    device: str,
    limit_bytes: int,
) -> tuple[EngineArgs, str]:
    """The arguments with the context and slots to use, and what was shrunk for people.

    Raises:
        KeepwarmError: a size cannot be measured.
    """
    sizes = sizes_of(entry)

    def needed_bytes(size: Size) -> int:
        sized = replace(args, n_ctx=size[0], slots=size[1])
        whole = inspector.whole(header, sized, device, n_gpu_layers=entry.n_gpu_layers)
        return whole.footprints[device].total_bytes

    may_split = device != HOST and entry.n_gpu_layers == "auto"
    chosen = whole_size(sizes, needed_bytes, limit_bytes, may_split=may_split)
    return replace(args, n_ctx=chosen[0], slots=chosen[1]), shrink_note(chosen, sizes[0])
