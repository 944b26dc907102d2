"""Models of vLLM that keepwarm runs: their folder, the bytes booked for them, what their server gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.footprint.inspect import Inspector
from backends.vllm.model_folder import ModelFolder, read_folder
from backends.vllm.vllm_engine import VllmSpec
from budget.errors import ConfigError, LoadFailed
from budget.footprint import HOST, EngineArgs, Footprint, Placement, Source
from shim.config import ModelEntry as ConfigEntry
from shim.keeper.catalog.entries import Prepared
from shim.keeper.catalog.worker_models import devices_for, with_learned
from shim.placement.budgeted_devices import BudgetDevices
from shim.placement.requested import POOLED, stamp_of

PROCESSES_BYTES: Final = 2 << 30
"""The host's bytes of the API server, the engine and the worker, until they are measured."""
GPU_BYTES: Final = 2 << 30
"""The GPU's bytes beside weights and KV cache (its context, activations, graphs), until measured."""
BLOCK_TOKENS: Final = 128
"""The largest block of the KV cache that vLLM chooses by itself; a started block is a whole one."""


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What is known of a model folder, in the form of a model's file."""

    files: tuple[Path, ...]
    identity: str
    architecture: str
    quantization: str
    min_bits_per_weight: float | None = None


def folder_files(entry: ConfigEntry) -> list[Path]:
    """The files of a model folder; a broken one is tried again when one of them changes."""
    folder = Path(entry.path or "/")
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return [folder]


def vllm_spec(entry: ConfigEntry, files: Sequence[Path]) -> VllmSpec:
    """What the server of a model gets."""
    return VllmSpec(
        model=Path(entry.path or "/"),
        files=tuple(files),
        python=entry.python,
        env=entry.env,
        threads=entry.threads,
        sleep=entry.sleep,
    )


def prepare_vllm(
    name: str, entry: ConfigEntry, devices: BudgetDevices, inspector: Inspector
) -> Prepared:
    """Read a model folder and choose the placements of its server; nothing is run.

    Raises:
        ConfigError: its device is not budgeted, or its bytes are too few.
        LoadFailed, BadModelFile: its folder is none.
    """
    path = Path(entry.path or "/")
    if not path.is_dir():
        raise LoadFailed(
            f"The model folder of {name} is not there: {path}.",
            hint="vLLM needs a folder in Hugging Face form (config.json, safetensors, a tokenizer).",
            file=str(path),
        )
    folder = read_folder(path)
    stamp = stamp_of(folder.files)
    made = [entry.python, entry.env, entry.threads, entry.sleep]
    text = json.dumps([made, stamp], sort_keys=True)
    identity = f"vllm:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
    facts = FolderFacts(folder.files, identity, folder.architecture, folder.quantization)
    args = _args(name, entry, folder)
    placed = tuple(
        with_learned(_placed(name, entry, folder, args, device), identity, inspector)
        for device in devices_for(name, entry, devices)
    )
    told = f"{identity}{args}{[p.main_device for p in placed]}"
    digest = hashlib.blake2b(told.encode(), digest_size=4).hexdigest()
    return Prepared(name, entry, facts, placed, f"{path.name}-{digest}", stamp)


def _args(name: str, entry: ConfigEntry, folder: ModelFolder) -> EngineArgs:
    n_ctx, slots = int(entry.context), int(entry.slots)
    if folder.context_length and n_ctx // slots > folder.context_length:
        if "context" in entry.model_fields_set:
            raise ConfigError(
                f"{name}: {n_ctx} tokens for {slots} {'slot' if slots == 1 else 'slots'} are"
                f" {n_ctx // slots} a slot; the model was"
                f" trained for {folder.context_length}.",
                hint=f"Lower [models.{name}] context to at most {folder.context_length * slots}.",
            )
        n_ctx = folder.context_length * slots
    embeds = entry.role in POOLED
    return EngineArgs(n_ctx=n_ctx, slots=slots, embeddings=embeds, extra=tuple(entry.engine_args))


def _placed(
    name: str, entry: ConfigEntry, folder: ModelFolder, args: EngineArgs, device: str
) -> Placement:
    overhead = PROCESSES_BYTES if device == HOST else GPU_BYTES
    source, kv_bytes = _kv_bytes(name, entry, folder, args, overhead)
    # As compute bytes: a measurement after the load is of all that it takes, nothing comes on top.
    parts = {device: Footprint(folder.weights_bytes, kv_bytes, compute_bytes=overhead)}
    if device != HOST:
        parts[HOST] = Footprint(compute_bytes=PROCESSES_BYTES)
    reason = "weights, KV cache and an allowance, until it is measured"
    if source == "declared":
        reason = "its bytes are those that the configuration declares"
    return Placement(args, parts, source, reason=reason)


def _kv_bytes(
    name: str, entry: ConfigEntry, folder: ModelFolder, args: EngineArgs, overhead: int
) -> tuple[Source, int]:
    """Where the booking is from, and the bytes of the KV cache: for all slots, or what `bytes` leaves."""
    per_token = folder.kv_bytes_per_token
    blocks = args.slots * -(-args.context_per_slot // BLOCK_TOKENS) + 1
    needed = blocks * BLOCK_TOKENS * per_token if per_token else 0
    if entry.bytes is None:
        if not needed:
            raise ConfigError(
                f"{name}: config.json does not tell how large its KV cache is.",
                hint=f"Say what it may take on its device: [models.{name}] bytes.",
            )
        return "files", needed
    left = entry.bytes.resolve(0) - folder.weights_bytes - overhead
    if left <= 0 or left < needed // args.slots:
        least = folder.weights_bytes + overhead + needed // args.slots
        raise ConfigError(
            f"{name}: {entry.bytes} are too few: its weights are {folder.weights_bytes} bytes, vLLM's own"
            f" are taken as {overhead}, and a request of {args.context_per_slot} tokens needs"
            f" {needed // args.slots}.",
            hint=f"Give it {least} bytes or more, or less context.",
        )
    return "declared", left
