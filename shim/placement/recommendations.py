"""Advice on what to run on a machine: bytes from model shapes, rates measured or assumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from backends.gguf import read_header
from backends.gguf.quantization import min_bits_per_weight
from backends.machine.devices import discover, find_device
from budget.errors import ConfigError, KeepwarmError, UnknownModel
from budget.footprint import HOST, EngineArgs
from budget.memory.closed_form import ByLayers, estimate, estimate_by_layers
from budget.memory.overhead import DEFAULT_OVERHEAD, engine_overhead_bytes
from budget.memory.shape import ModelShape
from budget.placement.choices import BytePools, Kind, ModelOption, option_at, options_of, spread_at
from budget.placement.known_models import FILE_TYPES, KNOWN, known_shape
from budget.placement.machine_rates import MachineFigures, SideFigures, assumed_side
from budget.placement.runtimes import VLLM_SHARE, Case, choose_runtime
from budget.placement.tables import ModelChoices, Variant
from budget.placement.traffic import decode_seconds, decode_traffic
from shim.config import Config
from shim.config.role_checks import check_precision
from shim.placement.plan_file import usable_plan
from shim.placement.requested import local_path

GPU: Final = "gpu"
ASSUMED_GPU_BYTES_PER_S: Final = 400e9
ASSUMED_HOST_BYTES_PER_S: Final = 50e9
"""Typical rates (a GPU of 8 to 16 GB, two channels of DDR4), used where none is measured or given."""

Verdict = Literal["fits", "split", "CPU", "no"]
WrittenRole = Literal["producer", "planner", "evaluator"]
"""The roles of models that write."""
ROLE_TYPES: Final[Mapping[WrittenRole, str]] = {
    "producer": "Q4_K_M",
    "planner": "Q4_K_M",
    "evaluator": "Q8_0",
}
"""The file type that a role is advised: half the bytes of Q8_0, except for what judges."""


@dataclass(frozen=True, slots=True)
class Target:
    """The machine to advise for. `origin` says where the bandwidths are from."""

    vram: tuple[int, ...]
    host_bytes: int
    gpu: SideFigures | None
    host: SideFigures
    origin: str

    @property
    def n_gpus(self) -> int:
        """How many GPUs there are."""
        return len(self.vram)

    @property
    def vram_bytes(self) -> int:
        """The bytes of the smallest GPU; 0 without one."""
        return min(self.vram, default=0)

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable data."""
        data = {**asdict(self), "vram": list(self.vram)}
        return {"n_gpus": self.n_gpus, "vram_bytes": self.vram_bytes, **data}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to advise on. One without a shape has the reason instead."""

    name: str
    file_type: str
    shape: ModelShape | None
    error: str = ""

    @property
    def quantization(self) -> str:
        """As `file_type`, for checks of roles."""
        return self.file_type

    @property
    def min_bits_per_weight(self) -> float | None:
        """Bits per weight of its coarsest matrix."""
        return None if self.shape is None else min_bits_per_weight(self.shape.tensors)


@dataclass(frozen=True, slots=True)
class Advice:
    """One row of advice: whether a model fits, how fast it is, and on which devices it runs.

    Rates are None where it does not fit.

    `kind` is `whole`, `spread` (over several GPUs), `split` (with the CPU) or `cpu`.
    """

    name: str
    file_type: str
    verdict: Verdict
    runtime: str
    n_gpu_layers: int
    total_bytes: int
    gpu_bytes: int
    host_bytes: int
    tokens_per_s: float | None
    cpu_tokens_per_s: float | None
    rule: str
    also: tuple[str, ...]
    reason: str
    kind: Kind | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable data."""
        return asdict(self)


def here(
    *,
    vram: Sequence[int] | None = None,
    bandwidth_bytes_per_s: float | None = None,
    host_bytes: int | None = None,
    host_bytes_per_s: float | None = None,
    device: str | None = None,
) -> Target:
    """This machine as a target; each argument given replaces the machine's own figure.

    Rates come from the arguments, else from the placement plan, else they are assumed.

    Raises:
        ConfigError: the device is not here.
    """
    plan, _ = usable_plan()
    measured = plan.machine if plan else None
    found = discover()
    memory = host_bytes if host_bytes is not None else found[0].total_bytes
    gpus = [d for d in found if d.kind == "cuda"]
    if device is not None:
        gpus = [find_device(device)] if device != HOST else []
    name = ""
    if vram is None:
        vram = [gpu.total_bytes for gpu in gpus]
        name = gpus[0].name if gpus else ""
    host, host_origin = _side(measured, HOST, host_bytes_per_s, ASSUMED_HOST_BYTES_PER_S)
    gpu, gpu_origin = _side(measured, name, bandwidth_bytes_per_s, ASSUMED_GPU_BYTES_PER_S)
    origin = f"host {host_origin}" + (f", GPU {gpu_origin}" if vram else "")
    return Target(tuple(vram), memory, gpu if vram else None, host, origin)


def _side(
    measured: MachineFigures | None, name: str, given: float | None, assumed: float
) -> tuple[SideFigures, str]:
    if given is not None:
        return assumed_side(given), "given"
    if measured is not None and name in measured.sides:
        return measured.sides[name], "measured"
    return assumed_side(assumed), f"assumed ({assumed / 1e9:.0f} GB/s)"


def subjects(
    named: Sequence[str], config: Config, role: WrittenRole | None = None
) -> list[Subject]:
    """Models by file, by configured name, or by a built-in name with or without `:TYPE`.

    Without a name: the models of the configuration; all built-in ones if it has none. A built-in name
    without a type stands for that of the role, or for every type.

    Raises:
        UnknownModel: a name is none of these.
        RoleViolation: one is too coarse for the role.
    """
    local = {name: entry for name, entry in config.models.items() if entry.is_gguf}
    found: list[Subject] = []
    for name in named or [*local] or [*KNOWN]:
        if name in local:
            found.append(_read(name, local_path(local[name])))
        elif os.path.isfile(name):  # noqa: PTH113 - a name that is too long for a path is none
            found.append(_read(Path(name).stem, Path(name)))
        else:
            found += _built_in(name, role)
    for one in found:
        check_precision(one.name, role, one)
    return found


def _read(name: str, path: Path) -> Subject:
    try:
        header = read_header(path)
        return Subject(name, header.quantization, header.shape())
    except KeepwarmError as error:
        return Subject(name, "", None, str(error))


def _built_in(name: str, role: WrittenRole | None) -> list[Subject]:
    base, _, wanted = name.partition(":")
    if base.lower() not in KNOWN:
        raise UnknownModel(
            f"{name!r} is no file, no configured model and not built in.",
            hint=f"Built in are {', '.join(KNOWN)}, each also with :{', :'.join(FILE_TYPES)}.",
            model=name,
        )
    given = wanted.upper() or (ROLE_TYPES[role] if role else "")
    kinds = [given] if given else [*FILE_TYPES]
    return [Subject(base.lower(), kind, known_shape(base, kind)) for kind in kinds]


def advise(
    subject: Subject, target: Target, users: int, context: int, kv_type: str = "f16"
) -> Advice:
    """The rows of advice for one model on a machine.

    Raises:
        ConfigError: the arguments are impossible for this model.
    """
    if subject.shape is None:
        return _none(subject, subject.error)
    shape = subject.shape
    each = min(context, shape.context_length or context)
    args = EngineArgs(
        each * users, users, kv_type, kv_type, embeddings=not shape.causal, flash_attention="auto"
    )
    try:
        return _verified(subject, shape, args, target)
    except ConfigError:
        raise
    except KeepwarmError as error:
        return _none(subject, str(error))


def _verified(subject: Subject, shape: ModelShape, args: EngineArgs, target: Target) -> Advice:
    """The advice, with exact bytes at the chosen numbers of layers.

    The table is interpolated between a few numbers of layers. The chosen ones are then computed exactly,
    and the choice is made again where they differ.
    """
    variant = _variant(shape, args, target)
    while True:
        found = _advice(subject, target, variant, args.slots)
        layers = found.n_gpu_layers
        one = ("cuda:0",) if layers else ()
        exact = estimate(shape, replace(args, n_gpu_layers=layers, devices=one), one)
        host = exact[HOST].total_bytes + engine_overhead_bytes(shape, args)
        device = exact[one[0]].total_bytes + DEFAULT_OVERHEAD.device_bytes if one else 0
        amounts = (int(variant.host_bytes[layers]), int(variant.device_bytes[layers]))
        if amounts == (host, device):
            return found
        variant.host_bytes[layers], variant.device_bytes[layers] = host, device


def _variant(shape: ModelShape, args: EngineArgs, target: Target) -> Variant:
    both = estimate_by_layers(shape, args)
    traffic = decode_traffic(shape, args, fill_tokens=args.context_per_slot // 2)
    host = both.host.total + engine_overhead_bytes(shape, args)
    device = both.device.total.copy()
    device[1:] += DEFAULT_OVERHEAD.device_bytes
    cpu = float(decode_seconds(traffic, target.host)[0])
    token_s = {}
    if target.gpu is not None:
        seconds = decode_seconds(traffic, target.host, target.gpu)
        token_s = {f"{GPU}:{number}": seconds for number in range(target.n_gpus)}
    # llama.cpp allocates a compute buffer and a context on every GPU that has a layer.
    each = DEFAULT_OVERHEAD.device_bytes + _compute_of_each(shape, args, target.n_gpus, both)
    return Variant(args.n_ctx, args.slots, host, device, token_s, cpu, each_device_bytes=each)


def _compute_of_each(shape: ModelShape, args: EngineArgs, n_gpus: int, both: ByLayers) -> int:
    """The largest compute buffer of a GPU, for one GPU alone or for several in a pipeline."""
    if n_gpus < 2:
        return int(both.device.compute[-1])
    whole = shape.n_layers + 1
    shares = tuple((whole + number) // n_gpus for number in range(n_gpus))
    names = tuple(f"cuda:{number}" for number in range(n_gpus))
    spread = replace(args, n_gpu_layers=whole, devices=names, tensor_split=shares)
    return max(part.compute_bytes for part in estimate(shape, spread, names).values())


def _advice(subject: Subject, target: Target, variant: Variant, users: int) -> Advice:
    limits = {HOST: target.host_bytes}
    limits |= {f"{GPU}:{number}": n_bytes for number, n_bytes in enumerate(target.vram)}
    pools = BytePools.of(limits)
    model = ModelChoices(subject.name, (variant,))
    options: dict[str, ModelOption] = {}
    # The fastest of each kind; without a threshold, so that the answer has both numbers.
    for option in options_of(model, variant, pools, min_gain=0.0):
        best = options.get(option.kind)
        if best is None or option.token_s < best.token_s:
            options[option.kind] = option
    split = _most_layers(variant, pools)
    verdict = choose_runtime(_case(variant, target, options, split, users))
    chosen = {
        "llama.cpp whole": options.get("whole") or options.get("spread"),
        "vLLM": options.get("whole"),
        "vLLM with tensor parallelism": options.get("spread"),
        "llama.cpp split": split,
        "llama.cpp on CPU": options.get("cpu"),
    }.get(verdict.runtime)
    if chosen is None:
        return _none(subject, verdict.rule.because, verdict.rule.condition, variant)
    fits: Verdict = "CPU" if chosen.kind == "cpu" else "split" if chosen.kind == "split" else "fits"
    cpu = 1.0 / variant.cpu_token_s if "cpu" in options else None
    return Advice(
        subject.name,
        subject.file_type,
        fits,
        verdict.runtime,
        chosen.n_gpu_layers,
        sum(chosen.pool_bytes),
        sum(chosen.pool_bytes[1:]),
        chosen.pool_bytes[0],
        round(1.0 / chosen.token_s, 2),
        None if cpu is None else round(cpu, 2),
        verdict.rule.condition,
        tuple(rule.condition for rule in verdict.also),
        _why(verdict.rule.because, chosen, variant),
        chosen.kind,
    )


def _most_layers(variant: Variant, pools: BytePools) -> ModelOption | None:
    """The fastest split that fits the host and the GPUs, one or all together."""
    layers = range(1, variant.whole)
    found = [option_at(variant, pools, device, k) for device in pools.devices for k in layers]
    if len(pools.devices) > 1:
        found += [spread_at(variant, pools, k) for k in layers]
    held = [option for option in found if pools.hold(option.pool_bytes)]
    return min(held, key=lambda option: option.token_s, default=None)


def _case(
    variant: Variant,
    target: Target,
    options: dict[str, ModelOption],
    split: ModelOption | None,
    users: int,
) -> Case:
    needed = int(variant.device_bytes[variant.whole])
    # Tensors are cut in equal parts, so the smallest GPU limits all of them.
    together = VLLM_SHARE * target.vram_bytes * target.n_gpus
    return Case(
        users=users,
        n_gpus=target.n_gpus,
        fits_one="whole" in options,
        fits_all="whole" in options or "spread" in options,
        vllm_fits_one="whole" in options and needed <= VLLM_SHARE * max(target.vram, default=0),
        vllm_fits_all=("spread" in options or "whole" in options) and needed <= together,
        fits_host="cpu" in options,
        fits_split=split is not None,
        split_gain=variant.cpu_token_s / split.token_s if split else 0.0,
    )


def _why(because: str, chosen: ModelOption, variant: Variant) -> str:
    if chosen.kind == "spread":
        return f"over {len(chosen.devices)} GPUs, whole on none; {because}"
    if chosen.kind != "split":
        return because
    gain = variant.cpu_token_s / chosen.token_s
    return (
        f"{chosen.n_gpu_layers} of {variant.whole} layers on {_on(chosen)}, {gain:.2f} times the CPU "
        f"alone; {because}"
    )


def _on(chosen: ModelOption) -> str:
    count = len(chosen.devices)
    return "the GPU" if count == 1 else f"{count} GPUs"


def _none(subject: Subject, reason: str, rule: str = "", variant: Variant | None = None) -> Advice:
    total = int(variant.host_bytes[0]) if variant else 0
    return Advice(
        subject.name,
        subject.file_type,
        "no",
        "none here",
        0,
        total,
        0,
        0,
        None,
        None,
        rule,
        (),
        reason,
    )
