"""A configuration's request for one model, as engine arguments and as a key of the placement plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from backends.llama.binaries import runs_by_binding
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from budget.memory.further.option_values import trained_context
from budget.memory.shape import ModelShape
from budget.placement.sizes import Size
from shim.config import ModelEntry, fetch_hub_file
from shim.config.schema.kind_keys import FOLLOW_FILE_KEYS
from shim.placement.from_plan import Asked
from shim.placement.plan_entry import Entry, Stamp, entry_key

POOLED: Final = ("embedder", "reranker")
"""Roles whose answers are one figure or vector for each text, and no text."""
MOST_OUTPUT_BYTES: Final = 1 << 30
"""The most that an embedder's rows of output take by default: 1,024 tokens with 250,000 words."""
_BATCH_STEP: Final = 64


def engine_args(entry: ModelEntry) -> EngineArgs:
    """The engine arguments that the configuration asks for; the layers are decided later."""
    kv_type_k, kv_type_v = entry.kv_types
    return EngineArgs(
        n_ctx=int(entry.context),
        slots=int(entry.slots),
        kv_type_k=kv_type_k,
        kv_type_v=kv_type_v,
        flash_attention=entry.flash_attention,
        n_batch=entry.n_batch,
        n_ubatch=entry.n_ubatch,
        repack=entry.repack,
        swa_full=entry.swa_full,
        embeddings=entry.role in POOLED,
        mmproj=str(entry.mmproj) if entry.mmproj else None,
        draft_model=str(entry.draft_model) if entry.draft_model else None,
        lora=tuple(str(path) for path in entry.lora),
        binding=entry.backend == "llama-cpp-python"
        or (entry.llama_server is None and runs_by_binding()),
        extra=(*entry.engine_args, *(["--reranking"] if entry.role == "reranker" else [])),
    )


def fitted_args(args: EngineArgs, entry: ModelEntry, shape: ModelShape, size: Size) -> EngineArgs:
    """The arguments at one (context, slots); keys that are left out follow the model's file.

    The context is at most what the model was trained for. An embedder's physical batch holds the context
    of a slot, because llama-server refuses a longer input where it cannot evaluate one in parts. It is less
    where its rows of output would take more than `MOST_OUTPUT_BYTES`.
    """
    n_ctx, slots = size
    if args.binding:
        slots = 1
    trained = trained_context(args.extra, shape)
    if "context" not in entry.model_fields_set and trained > 0:
        n_ctx = min(n_ctx, trained * slots)
    args = replace(args, n_ctx=n_ctx, slots=slots)
    in_parts = shape.causal and shape.pooling == "last"
    if not args.embeddings or in_parts or "n_ubatch" in entry.model_fields_set:
        return args
    most = args.n_batch if "n_batch" in entry.model_fields_set else args.context_per_slot
    # One row for each token, as wide as the vocabulary: it is reserved even where there are no logits.
    bounded = MOST_OUTPUT_BYTES // (4 * (shape.n_vocab + shape.n_embd)) // _BATCH_STEP * _BATCH_STEP
    n_ubatch = max(args.n_ubatch, min(most, args.context_per_slot, bounded))
    return replace(args, n_ubatch=n_ubatch, n_batch=max(args.n_batch, n_ubatch))


def local_path(entry: ModelEntry) -> Path:
    """The GGUF file of a local entry. A file on the Hugging Face Hub is downloaded when missing."""
    if entry.hf is not None:
        return fetch_hub_file(entry.hf)
    if entry.path is None:
        raise ConfigError("The model has neither path nor hf.")
    return Path(entry.path)


def stamp_of(paths: Sequence[str | Path]) -> Stamp:
    """Size and modification time of files; a missing one counts as empty."""
    rows = []
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - on the path of every request
            rows.append((str(path), found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):
            rows.append((str(path), 0, 0))
    return tuple(rows)


def side_files(entry: ModelEntry) -> list[Path]:
    """The files that an engine reads beside the model."""
    single = [path for path in (entry.mmproj, entry.draft_model) if path is not None]
    return [*single, *entry.lora]


def sizes_of(entry: ModelEntry) -> tuple[tuple[int, int], ...]:
    """(context, slots) that may be chosen, the preferred first.

    The context is halved down to its minimum, then the slots to theirs. Fewer slots make requests wait;
    less context makes some impossible, which a user allows by giving a range of contexts.
    """
    contexts = _halves(int(entry.context), getattr(entry.context, "least", int(entry.context)))
    slots = _halves(int(entry.slots), getattr(entry.slots, "least", int(entry.slots)))
    ladder = [(n_ctx, slots[0]) for n_ctx in contexts]
    ladder += [(contexts[-1], count) for count in slots[1:]]
    return tuple(ladder)


def _halves(preferred: int, least: int) -> list[int]:
    found = [preferred]
    while found[-1] > least:
        found.append(max(least, found[-1] // 2))
    return found


def asked_of(entry: ModelEntry, device: str, rpc: tuple[str, ...]) -> Asked:
    """The request for a local model; no model file is opened. `rpc` as in `EngineArgs`.

    Raises:
        KeepwarmError: its file is on the Hugging Face Hub and cannot be downloaded.
    """
    args = replace(engine_args(entry), rpc=rpc)

    def stamp(known: Entry) -> Stamp:
        return stamp_of([*known.facts.files, *side_files(entry)])

    left_out = FOLLOW_FILE_KEYS - entry.model_fields_set
    return Asked(
        entry_key(local_path(entry), args, device, left_out),
        entry.role,
        entry.pinned,
        None if entry.n_gpu_layers == "auto" else entry.n_gpu_layers,
        sizes_of(entry),
        stamp,
    )
