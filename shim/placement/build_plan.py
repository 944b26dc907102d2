"""Builds the placement plan: measures the machine once, and every model that has no valid entry yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from backends.footprint.calibrate import calibrate
from backends.footprint.inspect import Inspector
from backends.footprint.machine_overhead import measured_overhead, store_overhead
from backends.gguf import GgufHeader, read_header
from backends.machine.files.folders import temporary_folder
from backends.measure.decode import DecodeRun, DecodeTimer
from backends.measure.hardware import hardware, llama_build
from backends.measure.loads import LoadTimer
from backends.measure.whole_machine import FULL, QUICK, MachineMeasure
from budget.errors import ConfigError, KeepwarmError, MeasurementFailed
from budget.eviction.kv_store import carries_kv
from budget.footprint import HOST, EngineArgs
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel
from budget.placement.machine_rates import MachineFigures
from budget.placement.traffic import decode_seconds, decode_traffic
from shim.config import Config, ModelEntry
from shim.config.role_checks import check_precision, check_role
from shim.placement.budgeted_devices import BudgetDevices, budget_devices
from shim.placement.from_plan import decide, decision_json
from shim.placement.plan_entry import Entry, FileFacts, PlanPoint, Sizes
from shim.placement.plan_file import PlacementPlan
from shim.placement.requested import (
    asked_of,
    engine_args,
    fitted_args,
    local_path,
    side_files,
    stamp_of,
)

Effort = Literal["quick", "full"]
Say = Callable[[str], None]

ENGINE_LOAD_MODE = "none"
"""How engines read their weights (`backends.llama.args`)."""

_QUICK_STEPS = 4


@dataclass
class PlanBuilder:
    """Builds the placement plan of a configuration; valid entries of the plan before are kept."""

    config: Config
    effort: Effort = "quick"
    say: Say = lambda _text: None
    inspector: Inspector = field(default_factory=Inspector)
    measured: list[str] = field(default_factory=list)
    """The names of the models that were measured now."""
    errors: dict[str, str] = field(default_factory=dict)
    """The reasons why models have no entry, by model name."""
    overhead: OverheadModel = DEFAULT_OVERHEAD
    """The bytes of an engine's process beyond its buffers: measured, or assumed where that failed."""
    _rpc: tuple[str, ...] = ()

    def build(self, before: PlacementPlan | None) -> PlacementPlan:
        """Measure what `before` lacks, and return the new plan.

        `before` is a plan that is valid on this machine, or None.

        Raises:
            ConfigError: the budget's device is not there, or llama.cpp is not installed.
            MeasurementFailed: a program of llama.cpp failed.
        """
        found = one_device(self.config)
        device, limits, self._rpc = found.first, found.limits, found.servers()
        machine = self._machine(device.name, before)
        anew = self.effort == "full" and (before is None or machine is not before.machine)
        calibrated = self._calibrate(machine, anew=anew)
        known = before.entries if before is not None and not calibrated else {}
        local = {n: e for n, e in self.config.models.items() if e.is_gguf}
        asked = self._asked(local, device.name)
        entries = {k: v for k, v in known.items() if k in asked or _is_there(v)}
        plan = PlacementPlan(hardware(), llama_build(), self._effort(before), machine, entries)
        for name, model in local.items():
            try:
                key, entry = self._entry(name, model, device.name, plan)
            except KeepwarmError as error:
                self.errors[name] = str(error)
                continue
            if entry is not None:
                entries[key] = entry.to_json()
        return replace(plan, decisions=self._decisions(plan, limits, device.name))

    def _asked(self, local: Mapping[str, ModelEntry], device: str) -> set[str]:
        """The keys of the configured models. Their entries stay, also while a disk is not mounted."""
        keys = set()
        for model in local.values():
            if model.hf is None:
                keys.add(asked_of(model, device, self._rpc).key)
        return keys

    def _effort(self, before: PlacementPlan | None) -> str:
        return "full" if before is not None and before.effort == "full" else self.effort

    def _machine(self, device: str, before: PlacementPlan | None) -> MachineFigures:
        good = before is not None and (before.effort == "full" or self.effort == "quick")
        if before is not None and good and device in before.machine.sides:
            self.say("the machine was measured before")
            return before.machine
        effort = FULL if self.effort == "full" else QUICK
        with temporary_folder("keepwarm-build-") as folder:
            measure = MachineMeasure(
                folder,
                effort,
                self.config.budget.rpc,
                lambda done, steps, text: self.say(f"machine {done}/{steps}: {text}"),
            )
            return measure.run([device])

    def _calibrate(self, machine: MachineFigures, *, anew: bool) -> bool:
        """Measure the overhead of an engine's process if it is not known; returns whether it is new.

        Entries include the overhead, so new figures invalidate all of them.
        """
        known = measured_overhead()
        self.overhead = known or DEFAULT_OVERHEAD
        try:
            if known is None or anew:
                self.overhead = calibrate(say=self._say_engine)
            contexts = [n for name, n in machine.context_bytes.items() if name.startswith("cuda:")]
            if any(contexts):
                self.overhead = replace(self.overhead, device_bytes=max(contexts))
                store_overhead(self.overhead)
        except (MeasurementFailed, OSError) as error:
            self.say(f"the engine overhead could not be measured, what was known stays: {error}")
        return self.overhead != (known or DEFAULT_OVERHEAD)

    def _say_engine(self, done: int, steps: int) -> None:
        self.say(f"engine overhead: engine {done + 1} of {steps}")

    def _entry(
        self, name: str, model: ModelEntry, device: str, plan: PlacementPlan
    ) -> tuple[str, Entry | None]:
        """The key and a new entry; the entry is None when the present one still holds."""
        asked = asked_of(model, device, self._rpc)
        known = plan.entry(asked.key)
        if known is not None and asked.stamp(known) == known.stamp:
            sizes = {(s.n_ctx, s.slots) for s in known.variants}
            layers = {p.n_gpu_layers for p in known.variants[0].points}
            check_precision(name, model.role, known.facts)
            if sizes >= set(asked.sizes) and asked.n_gpu_layers in {None, *layers}:
                return asked.key, None
        self.say(f"{name}: measuring")
        self.measured.append(name)
        return asked.key, self._measure(name, model, device, plan.machine, asked.sizes)

    def _measure(
        self,
        name: str,
        model: ModelEntry,
        device: str,
        machine: MachineFigures,
        sizes: Sequence[tuple[int, int]],
    ) -> Entry:
        header = read_header(local_path(model))
        check_role(name, model, header)
        base = replace(engine_args(model), rpc=self._rpc)
        variants = []
        for number, (n_ctx, slots) in enumerate(sizes):
            args = fitted_args(base, model, header.shape(), (n_ctx, slots))
            layers = self._layers(header, model, device)
            points = []
            for step, count in enumerate(layers):
                self.say(f"{name}: dry run {step + 1} of {len(layers)}, size {number + 1}")
                points.append(self._point(header, args, device, count))
            token_s = _token_s(header, args, machine, device)
            variants.append(Sizes(n_ctx, slots, tuple(points), tuple(token_s)))
        stamp = stamp_of([*header.files, *side_files(model)])
        return Entry(
            stamp,
            facts_of(header),
            header.shape().n_layers,
            device,
            tuple(variants),
            machine.load.seconds(header.file_bytes, "staged", ENGINE_LOAD_MODE),
            carries_kv(header.shape(), base),
            self._timed(header) if self.effort == "full" else {},
        )

    def _layers(self, header: GgufHeader, model: ModelEntry, device: str) -> list[int]:
        """The values of n_gpu_layers to measure: `full` all; `quick` the ends and a few between."""
        if device == HOST:
            return [0]
        whole = header.shape().n_layers + 1
        if self.effort == "full":
            return list(range(whole + 1))
        steps = {round(whole * i / _QUICK_STEPS) for i in range(_QUICK_STEPS + 1)}
        given = {model.n_gpu_layers} if model.n_gpu_layers != "auto" else set()
        return sorted({1, whole - 1, *steps, *given} & set(range(whole + 1)))

    def _point(self, header: GgufHeader, args: EngineArgs, device: str, layers: int) -> PlanPoint:
        where = device if layers else HOST
        placed = (
            self.inspector.placement(header, replace(args, n_gpu_layers=layers), where)
            if layers
            else self.inspector.on_host(header, args)
        )
        return PlanPoint(layers, dict(placed.footprints), placed.args, placed.source)

    def _timed(self, header: GgufHeader) -> Mapping[str, float]:
        """Figures measured with the model itself: seconds of a staged load, tokens/s on the CPU."""
        path = header.files[0]
        with temporary_folder("keepwarm-build-") as folder:
            self.say(f"{path.name}: a staged load")
            LoadTimer(folder).ready_s(path, "none")
            found = {"staged_load_s": LoadTimer(folder).ready_s(path, "none")}
        if header.shape().causal:
            self.say(f"{path.name}: decode on the CPU")
            found["cpu_tokens_per_s"] = 1.0 / DecodeTimer().token_s(DecodeRun(path))
        return found

    def _decisions(
        self, plan: PlacementPlan, limits: Mapping[str, int], device: str
    ) -> dict[str, dict[str, object]]:
        asked = {
            name: asked_of(model, device, self._rpc)
            for name, model in self.config.models.items()
            if model.is_gguf and name not in self.errors
        }
        found = decide(plan, asked, limits)
        for name, why in found.missing.items():
            self.errors.setdefault(name, why)
        return {asked[n].key: decision_json(row.decision) for n, row in found.decided.items()}


def one_device(config: Config) -> BudgetDevices:
    """The budget's device and limits; a plan is for one device.

    Raises:
        ConfigError: the device is not there, or there are several.
    """
    found = budget_devices(config)
    if len(found.devices) > 1:
        raise ConfigError(
            f"a plan is for one device; [budget] has {', '.join(found.names)}.",
            hint="Name one with --device. With several devices a start measures the models itself.",
            devices=list(found.names),
        )
    return found


def facts_of(header: GgufHeader) -> FileFacts:
    """The facts of a header that an entry keeps."""
    return FileFacts(
        header.files,
        header.identity,
        header.architecture,
        header.quantization,
        header.min_bits_per_weight,
    )


def _token_s(
    header: GgufHeader, args: EngineArgs, machine: MachineFigures, device: str
) -> list[float]:
    """Predicted seconds of a token by n_gpu_layers, with half of a slot's context filled."""
    traffic = decode_traffic(header.shape(), args, fill_tokens=args.context_per_slot // 2)
    side = None if device == HOST else machine.sides[device]
    seconds = decode_seconds(traffic, machine.sides[HOST], side)
    return [float(value) for value in np.asarray(seconds)]


def _is_there(data: object) -> bool:
    """Whether the file of an entry still exists. Entries without a file are dropped from the plan."""
    try:
        return isinstance(data, Mapping) and os.path.exists(data["stamp"][0][0])  # noqa: PTH110 - never raises OSError
    except (LookupError, TypeError, ValueError):
        return False
