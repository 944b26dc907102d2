"""Describes configured models, from their files and never from their names. Loads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.gguf import read_header
from budget.errors import BadModelFile
from budget.memory.arguments import effective
from budget.memory.kv_cache import kv_by_layer
from shim.config import Config, ModelEntry
from shim.model_info import ModelInfo
from shim.placement.requested import engine_args, fitted_args, local_path, sizes_of

_SAMPLES = 64
_SAMPLE_BYTES = 4096


def describe_model(config: Config, name: str) -> ModelInfo:
    """The facts of a model. A file of the Hugging Face Hub is downloaded when it is not here yet.

    Raises:
        UnknownModel: it is not configured.
        BadModelFile: its file is missing, damaged or impossible.
    """
    entry = config.entry(name)
    if entry.remote:
        identity = f"{entry.url}#{entry.model_id or name}"
        return ModelInfo(name, entry.role, remote=True, identity=identity)
    if not entry.is_gguf:
        identity = str(entry.path or entry.command or f"{entry.factory}({entry.options})")
        return ModelInfo(name, entry.role, remote=False, identity=identity)
    return _local(name, entry)


def file_metadata(path: Path) -> Mapping[str, Any]:
    """The metadata of a GGUF file by key.

    Raises:
        BadModelFile: the file is missing, cut off, damaged or impossible.
    """
    return read_header(path).metadata


def _local(name: str, entry: ModelEntry) -> ModelInfo:
    header = read_header(local_path(entry))
    shape = header.shape()
    args = fitted_args(engine_args(entry), entry, shape, sizes_of(entry)[0])
    kv_tokens = effective(args).n_ctx
    return ModelInfo(
        name,
        entry.role,
        remote=False,
        identity=_weights_identity(header.files),
        file=header.files[0],
        architecture=header.architecture,
        quantization=header.quantization,
        min_bits_per_weight=header.min_bits_per_weight,
        parameters=header.parameters,
        context_per_slot=args.context_per_slot,
        kv_bytes_per_token=-(-int(kv_by_layer(shape, args).sum()) // kv_tokens),
    )


def _weights_identity(files: Sequence[Path]) -> str:
    """A hash over the sizes of files and samples spread evenly over them: copies are equal."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            size = path.stat().st_size
            digest.update(f"{size};".encode())
            with path.open("rb") as file:
                for number in range(_SAMPLES):
                    file.seek(size * number // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise BadModelFile(
                f"{path} cannot be read: {error.strerror}.", file=str(path), offset=0
            ) from error
    return digest.hexdigest()
