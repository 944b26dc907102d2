"""What a configured model is, read from its file and never from its name. Loads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.gguf import read_header
from budget.errors import BadModelFile, UnknownModel
from shim.config import Config, ModelEntry
from shim.keeper.catalog import local_path

_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the configuration.

    For a remote model only `name`, `role`, `remote` and `identity` are known; the rest is None.

    Attributes:
        name: what callers call it.
        role: `producer`, `evaluator`, `planner`, `embedder`, or None.
        remote: whether an endpoint runs it.
        identity: equal for two models that are the same thing: the same weights (a link or a copy
            of one file), or the same model of the same endpoint.
        file: the GGUF file, the first of several shards.
        architecture: llama.cpp's name of it.
        quantization: what its tensors are: `Q4_K_M`, `Q8_0`, `F16`, ...
        min_bits_per_weight: of its coarsest matrix (Q8_0: 8.5).
        parameters: the number of its weights.
        context_per_slot: tokens that one request can use.
    """

    name: str
    role: str | None
    remote: bool
    identity: str
    file: Path | None = None
    architecture: str | None = None
    quantization: str | None = None
    min_bits_per_weight: float | None = None
    parameters: int | None = None
    context_per_slot: int | None = None


def describe_model(config: Config, name: str) -> ModelInfo:
    """What a model is. A file of the Hugging Face Hub is downloaded when it is not here yet.

    Raises:
        UnknownModel: it is not configured.
        BadModelFile: its file is missing, damaged or impossible.
    """
    entry = config.models.get(name)
    if entry is None:
        raise UnknownModel(
            f"No model is called {name!r}.",
            hint=f"Configured are: {', '.join(sorted(config.models)) or 'none'}.",
            model=name,
        )
    if entry.remote:
        identity = f"{entry.url}#{entry.model_id or name}"
        return ModelInfo(name, entry.role, remote=True, identity=identity)
    return _local(name, entry)


def _local(name: str, entry: ModelEntry) -> ModelInfo:
    header = read_header(local_path(entry))
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
        context_per_slot=entry.context_per_slot,
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
