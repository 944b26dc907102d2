"""Footprints from the header alone, for one placement or for all n_gpu_layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from budget.errors import ConfigError
from budget.estimate.arguments import check_args
from budget.estimate.compute import ComputeParts, compute_parts, output_bytes
from budget.estimate.kv import kv_by_layer
from budget.estimate.recurrent import recurrent_by_layer
from budget.estimate.shape import ModelShape
from budget.estimate.weights import weights_by_layers
from budget.footprint import HOST, EngineArgs, Footprint

Bytes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PartsByLayers:
    """One side's bytes by n_gpu_layers: entry `k` of each array is n_gpu_layers = k."""

    weights: Bytes
    kv: Bytes
    compute: Bytes

    def at(self, n_gpu_layers: int) -> Footprint:
        """The footprint with that many layers on the device."""
        return Footprint(
            int(self.weights[n_gpu_layers]),
            int(self.kv[n_gpu_layers]),
            int(self.compute[n_gpu_layers]),
        )

    @property
    def total(self) -> Bytes:
        """The sum of the parts."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class ByLayers:
    """The host's and one device's bytes for n_gpu_layers 0 to n_layers + 1."""

    host: PartsByLayers
    device: PartsByLayers


def estimate_by_layers(shape: ModelShape, args: EngineArgs) -> ByLayers:
    """The bytes of both sides for every n_gpu_layers; `args.n_gpu_layers` is not looked at.

    Engine overhead is not in them (`budget.estimate.overhead`).

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture is not known.
    """
    check_args(args, shape)
    weights = weights_by_layers(shape, repack=args.repack)
    state = kv_by_layer(shape, args) + recurrent_by_layer(shape, args)
    host_state, device_state = _split(state)
    host_compute, device_compute = _compute(compute_parts(shape, args), shape.n_layers)
    host_compute += output_bytes(shape, args)
    return ByLayers(
        PartsByLayers(weights.host, host_state, host_compute),
        PartsByLayers(weights.device, device_state, device_compute),
    )


def estimate(shape: ModelShape, args: EngineArgs, devices: Sequence[str]) -> dict[str, Footprint]:
    """The footprint of the host and of each device, without engine overhead.

    `devices` are those that layers may go to, the host not among them; empty for the host alone.
    Figures for `cuda:N` have not been confirmed on a GPU.

    Raises:
        ConfigError: the arguments are impossible, or there is more than one device (llama.cpp then
            splits by free memory, which the header does not tell).
        MeasurementFailed: the architecture is not known.
    """
    if len(devices) > 1:
        raise ConfigError(
            f"the closed form places layers on one device; {len(devices)} are named.",
            hint="Measure a split over several devices by dry run.",
            devices=list(devices),
        )
    both = estimate_by_layers(shape, args)
    if not devices:
        return {HOST: both.host.at(0)}
    layers = args.n_gpu_layers
    return {HOST: both.host.at(layers), devices[0]: both.device.at(layers)}


def _split(by_layer: Bytes) -> tuple[Bytes, Bytes]:
    """Host and device sums by n_gpu_layers: the output goes first, then layers from the last on."""
    n_layers = len(by_layer)
    ahead = np.concatenate([[0], np.cumsum(by_layer)]).astype(np.int64)
    on_host = np.maximum(n_layers + 1 - np.arange(n_layers + 2), 0)
    host = ahead[np.minimum(on_host, n_layers)]
    return host, ahead[-1] - host


def _compute(parts: ComputeParts, n_layers: int) -> tuple[Bytes, Bytes]:
    """Compute buffers of both sides by n_gpu_layers, the output being the first of them."""
    layers = np.arange(n_layers + 2)
    host = np.where(layers > n_layers, parts.host_none, parts.host_all)
    device = np.select(
        [layers == 0, layers == 1, layers == 2, layers <= n_layers],
        [0, parts.output, parts.device_last, parts.device_some],
        parts.device_all,
    )
    return host.astype(np.int64), device.astype(np.int64)
