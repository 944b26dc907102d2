"""Turns a model file and engine arguments into a placement with bytes per device and part.

`dry-run` asks llama.cpp (cached); `closed-form` computes from the header and needs no llama.cpp, and is
called `bound` where the model's graph is not known; `auto` is the dry run where llama.cpp is installed, and
says so when it is not.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from backends.footprint.cache import FootprintCache, cache_key
from backends.footprint.companion_files import (
    companions,
    merged,
    projector_estimate,
    projector_measured,
)
from backends.footprint.dry_run import DEFAULT_TIMEOUT_S, DryRun, measure
from backends.footprint.learned import Learned, LearnedStore
from backends.footprint.machine_overhead import stored_overhead
from backends.gguf.header import GgufHeader, read_header
from backends.gguf.skim import SkimmedArray
from backends.llama.binaries import binding_folder, engine_build, find_binary
from backends.machine.files.page_cache import can_be_mapped
from budget.errors import ConfigError, MeasurementFailed
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from budget.memory.arguments import check_args
from budget.memory.closed_form import estimate
from budget.memory.companions import draft_args
from budget.memory.compute import is_exact
from budget.memory.further.option_values import control_vector_bytes
from budget.memory.further.speculation import speculation_parts
from budget.memory.graph import LLAMA_BUILD
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel, engine_overhead_bytes
from budget.memory.shape import ModelShape
from budget.memory.split import normal
from budget.memory.weights import weights_by_layers

RequestedSource = Literal["auto", "closed-form", "dry-run"]
KnownSource = Literal["closed-form", "bound", "dry-run"]
Measure = Callable[[str, EngineArgs], DryRun]

NO_BUILD: Final = "none"
_COUNTED: Final = ("--spec-", "--control-vector", "--rope-", "--yarn-", "--rerank")
"""The beginnings of further arguments whose bytes are counted, or that take none."""
_MERGES: Final = "tokenizer.ggml.merges"


def dry_run_available() -> bool:
    """Whether llama.cpp's dry measurement can run on this machine."""
    return platform.machine() == "x86_64" and binding_folder() is not None


def _measure(path: str, args: EngineArgs) -> DryRun:
    return measure(path, args, timeout_s=DEFAULT_TIMEOUT_S)


@dataclass
class Inspector:
    """Inspects model files; holds the cache of measurements and the way they are made."""

    cache: FootprintCache = field(default_factory=FootprintCache)
    measure: Measure = _measure
    overhead: OverheadModel | None = None
    """The overhead of an engine's process. None takes the one measured on this machine; an explicit
    `closed-form` then takes the default, because it reads no measurement."""
    build: str | None = None
    learned: LearnedStore | None = None
    """Corrections to book; without them placements have their estimated bytes."""
    _stored: OverheadModel | None = field(default=None, init=False)
    _busy: set[str] = field(default_factory=set, init=False)
    """RPC servers that served another client; this inspector does not ask them again."""

    def placement(
        self, header: GgufHeader, args: EngineArgs, device: str, source: RequestedSource = "auto"
    ) -> Placement:
        """The placement of the model with exactly these arguments on `device` (and the host).

        Devices that `args` names count before `device`; its arguments come back in normal form
        (`budget.memory.split`).

        Raises:
            ConfigError: the arguments are impossible for this model or this device.
            BadModelFile: llama.cpp refuses the file.
            MeasurementFailed: there is no measurement, or no closed form for the architecture's cache.
        """
        shape = header.shape()
        placed = on_device(args, device)
        check_args(placed, shape)
        placed = normal(placed, shape.n_layers)
        used = self._source(source)
        if used == "dry-run" and source == "auto" and self._busy.intersection(placed.rpc):
            used = "closed-form"
        try:
            parts = self._parts(header, placed, used)
        except MeasurementFailed as error:
            if source != "auto" or not error.facts.get("busy"):
                raise
            # The RPC server serves one client at a time, so the header is used until that client has left.
            self._busy.update(placed.rpc)
            return self.placement(header, args, device, source)
        if placed.draft_model or placed.lora:
            beside = companions(shape, placed, lambda model, own: self._parts(model, own, used))
            parts = merged(parts, beside)
        if placed.mmproj is not None:
            parts = merged(parts, self._projector(placed.mmproj, placed, used))
        parts = merged(parts, speculation_parts(placed, shape, parts), _vectors(placed, shape))
        if used == "closed-form" and not _all_exact(header, placed):
            used = "bound"
        note = "; ".join(self._notes(placed, used, source))
        overhead = self._overhead(source)
        found = Placement(
            placed, _with_overhead(header, placed, parts, overhead), used, shape.n_layers, note
        )
        learned = self.learned_of(header, placed)
        return learned.apply(found) if learned else found

    def learned_of(self, header: GgufHeader, args: EngineArgs) -> Learned | None:
        """The corrections from earlier loads of that file with exactly these arguments, or None."""
        if self.learned is None:
            return None
        return self.learned.get(header.identity, args, self.build_key())

    def build_key(self) -> str:
        """The llama.cpp build that figures are kept under; `none` where it is not installed."""
        if self.build is None:
            try:
                self.build = engine_build()
            except ConfigError:
                self.build = NO_BUILD
        return self.build

    def on_host(
        self, header: GgufHeader, args: EngineArgs, source: RequestedSource = "auto"
    ) -> Placement:
        """The placement on the CPU alone. Weights are mapped, not copied, if the CPU repacks none of them.

        The bytes are the same, and a load takes a third to a half less time. Files that cannot be mapped
        are copied.
        """
        repacked = int(weights_by_layers(header.shape(), repack=args.repack).repacked[0])
        use_mmap = args.use_mmap or (repacked == 0 and all(map(can_be_mapped, header.files)))
        on_host = replace(args, n_gpu_layers=0, use_mmap=use_mmap)
        return self.placement(header, on_host, HOST, source)

    def _source(self, source: RequestedSource) -> KnownSource:
        if source == "auto":
            return "dry-run" if dry_run_available() else "closed-form"
        return source

    def _parts(
        self, header: GgufHeader, args: EngineArgs, used: KnownSource
    ) -> Mapping[str, Footprint]:
        if used == "dry-run":
            return self._measured(header, args)
        return estimate(header.shape(), args, args.layer_devices)

    def _projector(self, path: str, args: EngineArgs, used: KnownSource) -> dict[str, Footprint]:
        if used == "dry-run":
            return projector_measured(path, args, self.cache, self.build_key())
        return projector_estimate(path, args)

    def _notes(self, args: EngineArgs, used: KnownSource, source: RequestedSource) -> Iterator[str]:
        if used != "dry-run":
            if source == "auto":
                busy = ", ".join(sorted(self._busy.intersection(args.rpc)))
                yield f"{busy} serves another client" if busy else "llama.cpp is not installed"
            elif dry_run_available() and (found := self._other_build()):
                yield f"graphs are those of llama.cpp {LLAMA_BUILD}; {found} is installed"
            if used == "bound":
                yield "the graph is not known: compute buffers are a bound"
            if any(name.startswith("cuda:") for name in args.devices):
                yield "figures for CUDA have not been confirmed on a GPU"
        if uncounted := _uncounted(args.extra):
            yield f"not counted: {' '.join(uncounted)}"

    def _other_build(self) -> str:
        """The installed llama.cpp's version if the graphs were written for another version, else ''."""
        here = self.build_key().rpartition("-")[0]
        return "" if here in {"", LLAMA_BUILD} else here

    def _measured(self, header: GgufHeader, args: EngineArgs) -> Mapping[str, Footprint]:
        path = str(header.files[0])
        if self.build_key() == NO_BUILD:
            find_binary(
                "llama-server"
            )  # raises the error about the missing program, because a measurement belongs to a build
        key = cache_key(header.identity, args, self.build_key())

        def measured() -> DryRun:
            run = self.measure(path, args)
            # The result is cached under the file's identity, so the file must not have changed meanwhile.
            header.check_unchanged()
            return run

        run = self.cache.get_or_measure(key, measured)
        if not args.use_mmap:
            return run.devices
        # The file's pages stay mapped beside the repacked copies.
        twice = sum(row.weights_bytes for row in run.buffers if "REPACK" in row.buffer_type)
        return merged(run.devices, {HOST: Footprint(weights_bytes=twice)})

    def _overhead(self, source: RequestedSource) -> OverheadModel:
        if self.overhead is not None:
            return self.overhead
        if source == "closed-form":
            return DEFAULT_OVERHEAD
        if self._stored is None:
            self._stored = stored_overhead()
        return self._stored


def _vectors(args: EngineArgs, shape: ModelShape) -> dict[str, Footprint]:
    """Control vectors, on every device: llama.cpp keeps each layer's row where the layer is."""
    n_bytes = control_vector_bytes(args.extra, shape)
    return {name: Footprint(n_bytes) for name in (HOST, *args.layer_devices)} if n_bytes else {}


def _uncounted(extra: Sequence[str]) -> list[str]:
    """The further arguments without the options whose bytes are counted, and without their values."""
    counted, found = False, []
    for word in extra:
        is_option = word.startswith("-") and not word[1:2].isdigit()
        counted = word.startswith(_COUNTED) if is_option else counted
        if not counted:
            found.append(word)
    return found


def _all_exact(header: GgufHeader, args: EngineArgs) -> bool:
    """Whether the graphs of the model and of its draft model are known."""
    if not is_exact(header.shape(), args):
        return False
    if args.draft_model is None:
        return True
    draft = read_header(args.draft_model).shape()
    return is_exact(draft, draft_args(args, draft.n_layers))


def _with_overhead(
    header: GgufHeader, args: EngineArgs, parts: Mapping[str, Footprint], model: OverheadModel
) -> dict[str, Footprint]:
    merges = header.metadata.get(_MERGES)
    count = merges.count if isinstance(merges, SkimmedArray) else 0
    host = engine_overhead_bytes(header.shape(), args, n_merges=count, model=model)
    found = {}
    for device, part in parts.items():
        extra = model.device_bytes if device.startswith("cuda:") else 0
        found[device] = part + Footprint(overhead_bytes=host if device == HOST else extra)
    return found


def on_device(args: EngineArgs, device: str) -> EngineArgs:
    """The arguments with the device in them. For the host, llama.cpp gets the device `none`.

    Devices that `args` already names are kept, so that a split over several can be asked for.
    """
    if device == HOST:
        if args.n_gpu_layers:
            raise ConfigError(
                f"n_gpu_layers is {args.n_gpu_layers} and the device is the host.",
                hint="Set n_gpu_layers to 0, or choose a GPU.",
                n_gpu_layers=args.n_gpu_layers,
            )
        return replace(args, devices=(HOST,), rpc=())
    return args if args.devices else replace(args, devices=(device,))


def with_note(placement: Placement, note: str) -> Placement:
    """The placement with a note added to its reason; unchanged for an empty note."""
    if not note:
        return placement
    return replace(placement, reason="; ".join(text for text in (placement.reason, note) if text))
