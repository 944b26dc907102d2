"""The whole measurement of a machine: decode on each device, loads, starts, contexts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from backends.measure.calibration import Calibration, narrow, wide, write_calibration
from backends.measure.decode import DecodeRun, DecodeTimer, medians
from backends.measure.loads import LoadTimer, load_modes
from budget.footprint import HOST
from budget.placement.machine_rates import LoadFigures, MachineFigures, SideFigures

Say = Callable[[int, int, str], None]
"""Called with the number of steps done, the number of all steps, and the present step in words."""

_LAYERS: Final = (4, 36)
_EVERYTHING: Final = 999


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure."""

    types: tuple[str, ...]
    model_bytes: int
    load_bytes: int
    rounds: int
    loads: int


QUICK: Final = Effort(("F16", "Q8_0", "Q6_K", "Q4_K"), 96 << 20, 384 << 20, 3, 2)
FULL: Final = Effort(
    ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q5_0", "Q4_0", "IQ4_XS"),
    256 << 20,
    1 << 30,
    5,
    4,
)


@dataclass
class MachineMeasure:
    """Measures in a folder that it fills with generated models; the caller removes the folder."""

    folder: Path
    effort: Effort = QUICK
    rpc: tuple[str, ...] = ()
    say: Say = lambda _done, _all, _text: None
    timer: DecodeTimer = field(default_factory=DecodeTimer)
    _done: int = field(default=0, init=False)
    _all: int = field(default=0, init=False)

    def run(self, devices: Sequence[str]) -> MachineFigures:
        """Measure the host and `devices` (those that layers may go to).

        Raises:
            ConfigError: a program of llama.cpp is not installed.
            MeasurementFailed: one of them failed.
        """
        sides = [HOST, *(name for name in devices if name != HOST)]
        modes = load_modes()
        each = len(self.effort.types) + len(_LAYERS)
        self._all = each * (1 + len(sides)) + 1 + 2 * len(modes) * self.effort.loads
        files = self._write()
        figures: dict[str, SideFigures] = {}
        for name in sides:
            figures[name] = self._side(name, files, figures.get(HOST))
        load = self._loads(modes)
        context = {name: self._context(name) for name in sides}
        return MachineFigures(figures, load, context)

    def _step(self, text: str, steps: int = 1) -> None:
        self.say(self._done, self._all, text)
        self._done += steps

    def _path(self, model: Calibration) -> Path:
        return self.folder / f"{model.ggml_type}-{model.n_layers}x{model.n_embd}.gguf"

    def _write(self) -> list[Calibration]:
        models = [narrow(count) for count in _LAYERS]
        models += [wide(kind, self.effort.model_bytes) for kind in self.effort.types]
        for model in models:
            self._step(f"generating a model of {model.ggml_type}")
            write_calibration(model, self._path(model))
        return models

    def _side(
        self, device: str, models: Sequence[Calibration], host: SideFigures | None
    ) -> SideFigures:
        self._step(f"decode on {device}", len(models))
        rpc = self.rpc if device.startswith("RPC") else ()
        if host is None:
            runs = [DecodeRun(self._path(model)) for model in models]
            return fit_side(models, medians(self.timer, runs, self.effort.rounds))
        runs = [DecodeRun(self._path(model), device, _EVERYTHING, rpc) for model in models]
        half = [
            DecodeRun(run.path, device, m.n_layers // 2 + 1, rpc)
            for run, m in zip(runs, models, strict=True)
        ]
        seconds = medians(self.timer, [*runs, *half], self.effort.rounds)
        whole, split = seconds[: len(runs)], seconds[len(runs) :]
        side = fit_side(models, [max(s - host.token_s, 1e-9) for s in whole])
        return with_crossing(models, split, host, side)

    def _loads(self, modes: Sequence[str]) -> LoadFigures:
        timer = LoadTimer(self.folder)
        small, big = self._path(narrow(_LAYERS[0])), self.folder / "load.gguf"
        write_calibration(wide("F16", self.effort.load_bytes), big)
        self._step("start of an engine")
        start = min(timer.ready_s(small, "none") for _ in range(self.effort.loads + 1))
        staged: dict[str, float] = {}
        cold: dict[str, float] = {}
        for mode in modes:
            for rates, is_cold in ((staged, False), (cold, True)):
                self._step(
                    f"{'disk-cold' if is_cold else 'staged'} load, mode {mode}", self.effort.loads
                )
                seconds = min(
                    timer.ready_s(big, mode, cold=is_cold) for _ in range(self.effort.loads)
                )
                # A load that is no slower than a start reads too fast for a rate to be measured.
                rates[mode] = big.stat().st_size / max(seconds - start, 0.005)
        return LoadFigures(start, cold, staged)

    def _context(self, device: str) -> int:
        model = narrow(_LAYERS[0])
        return LoadTimer(self.folder, device, self.rpc).context_bytes(
            self._path(model), model.read_bytes
        )


def fit_side(models: Sequence[Calibration], seconds: Sequence[float]) -> SideFigures:
    """Rates by type, seconds of a token and of a layer, from the measured seconds of a token.

    The first two models differ in layers only. Their difference is the cost of a layer, and the rest of
    the first is the cost of a token. Both are subtracted from the others, which give the rates.
    """
    few, many = models[0], models[1]
    slope = (seconds[1] - seconds[0]) / (many.n_layers - few.n_layers)
    rates: dict[str, float] = {}
    layer_s, token_s = max(slope, 0.0), 0.0
    # Reading is a small part of a narrow layer, so two rounds suffice.
    for _ in range(3):
        for model, total in zip(models[2:], seconds[2:], strict=True):
            left = total - token_s - layer_s * model.n_layers
            rates[model.ggml_type] = model.read_bytes / max(left, total / 20)
        rate = SideFigures(rates).rate(few.ggml_type)
        layer_s = max(slope - few.layer_bytes / rate, 0.0)
        token_s = max(seconds[0] - layer_s * few.n_layers - few.read_bytes / rate, 0.0)
    return SideFigures(rates, token_s, layer_s)


def with_crossing(
    models: Sequence[Calibration], seconds: Sequence[float], host: SideFigures, side: SideFigures
) -> SideFigures:
    """The device's figures with the cost of a split beyond that of its two sides.

    `seconds` are those of a token with the output and the last half of each model on the device.
    """
    beyond = []
    for model, total in zip(models, seconds, strict=True):
        moved = model.n_layers // 2
        stay = model.n_layers - moved
        on_host = stay * (model.layer_bytes / host.rate(model.ggml_type) + host.layer_s)
        on_device = moved * (model.layer_bytes / side.rate(model.ggml_type) + side.layer_s)
        on_device += model.output_bytes / side.rate(model.ggml_type)
        beyond.append(total - host.token_s - side.token_s - on_host - on_device)
    return replace(side, crossing_s=max(statistics.median(beyond), 0.0))
