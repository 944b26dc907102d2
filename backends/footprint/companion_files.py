"""Files beside a model that take memory, too: projector, draft model, LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from backends.footprint.cache import FootprintCache, bytes_key
from backends.footprint.dry_run import measure_projector
from backends.gguf.checks import shown
from backends.gguf.header import GgufHeader, read_header
from budget.errors import ConfigError, MeasurementFailed
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.companions import Tower, adapter_footprints, draft_args
from budget.memory.shape import ModelShape

Parts = Mapping[str, Footprint]
MeasureModel = Callable[[GgufHeader, EngineArgs], Parts]

# Projectors with one image size; others scale with the image, and the header does not say how.
FIXED_SIZE_PROJECTORS: Final = frozenset({"gemma3", "mlp", "idefics3", "internvl", "janus_pro"})


def merged(*all_parts: Parts) -> dict[str, Footprint]:
    """The sum of footprints, device by device."""
    found: dict[str, Footprint] = {}
    for parts in all_parts:
        for device, part in parts.items():
            found[device] = found.get(device, Footprint()) + part
    return found


def companions(shape: ModelShape, args: EngineArgs, model: MeasureModel) -> dict[str, Footprint]:
    """The bytes of the draft model and adapters of `args`, by device; `model` returns a model's own bytes.

    Raises:
        BadModelFile: a file is damaged.
        ConfigError: an adapter is for another architecture.
        MeasurementFailed: there is no figure.
    """
    found: dict[str, Footprint] = {}
    if args.draft_model is not None:
        draft = read_header(args.draft_model)
        found = merged(found, model(draft, draft_args(args, draft.shape().n_layers)))
    for path in args.lora:
        found = merged(found, adapter(path, shape, args))
    return found


def adapter(path: str, shape: ModelShape, args: EngineArgs) -> dict[str, Footprint]:
    """The bytes of a LoRA adapter's tensors, on the devices where llama.cpp puts them.

    Raises:
        ConfigError: the file is no adapter, or one for another architecture.
        BadModelFile: it is damaged.
    """
    header = read_header(path)
    kind = header.metadata.get("general.type")
    if kind != "adapter" or header.architecture != shape.architecture:
        raise ConfigError(
            f"{path} is {shown(kind)} for {shown(header.architecture)}; "
            f"an adapter for {shape.architecture!r} is needed.",
            hint="Convert the LoRA for this base model.",
            file=path,
        )
    return adapter_footprints(header.tensors, shape, args)


def projector_estimate(path: str, args: EngineArgs) -> dict[str, Footprint]:
    """A projector's bytes from its header: weights exactly, compute as an upper bound.

    It goes to the first device, as llama-server puts it, else to the host.

    Raises:
        MeasurementFailed: its images have no fixed size, or it is no vision projector.
        BadModelFile: the file is damaged.
    """
    header = read_header(path)
    kind = header.metadata.get("clip.projector_type")
    if kind not in FIXED_SIZE_PROJECTORS:
        raise MeasurementFailed(
            f"there is no closed form for the projector {path} of type {shown(kind)}.",
            hint="Measure it by dry run (source auto or dry-run).",
            known=sorted(FIXED_SIZE_PROJECTORS),
        )
    names = ("image_size", "patch_size", "embedding_length", "feed_forward_length")
    numbers = [_number(header, name) for name in (*names, "attention.head_count")]
    flash = args.flash_attention != "off"
    compute = Tower(*numbers).compute_bytes(flash=flash)
    weights = sum(tensor.n_bytes for tensor in header.tensors)
    device = next((name for name in args.devices if name != HOST), HOST)
    return {device: Footprint(weights, 0, compute)}


def _number(header: GgufHeader, name: str) -> int:
    value = header.metadata.get(f"clip.vision.{name}")
    if not isinstance(value, int) or value < 1:
        raise MeasurementFailed(
            f"clip.vision.{name} of {header.files[0]} is {shown(value)}; a positive number is needed.",
            hint="Measure it by dry run, or check the file.",
        )
    return value


def projector_measured(
    path: str, args: EngineArgs, cache: FootprintCache, build: str
) -> dict[str, Footprint]:
    """A projector's bytes as llama.cpp measures them, with the compute buffer of the largest image; cached.

    Raises:
        BadModelFile: llama.cpp refuses the file.
        MeasurementFailed: the measurement crashed or took too long.
    """
    header = read_header(path)
    key = bytes_key(header.identity, args.rpc, args.devices, args.flash_attention, build)

    def measured() -> dict[str, int]:
        found = measure_projector(path, args)
        header.check_unchanged()
        return found

    by_device = cache.bytes_or_measure(key, measured)
    weights = sum(tensor.n_bytes for tensor in header.tensors)
    found = {}
    for device, n_bytes in by_device.items():
        here = min(weights, n_bytes)
        weights -= here
        found[device] = Footprint(here, 0, n_bytes - here)
    return found
