"""Footprints from the header alone, for one placement or for all n_gpu_layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from budget.estimate import ggml_graph as sides
from budget.estimate.allocator import reserved_bytes
from budget.estimate.arguments import check_args
from budget.estimate.compute import compute_by_layers, output_bytes, prepare_sums
from budget.estimate.features import feature_counts
from budget.estimate.ggml_graph import Graph
from budget.estimate.graphs import graph_of
from budget.estimate.kv import kv_by_layer
from budget.estimate.recurrent import recurrent_by_layer
from budget.estimate.shape import ModelShape
from budget.estimate.spread import spread
from budget.estimate.weights import CUDA_ALIGNMENT, HOST_ALIGNMENT, is_cuda, weights_by_layers
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


def prepare(shape: ModelShape) -> ModelShape:
    """The same shape, with what every placement needs of the model alone made and kept.

    Whoever reads a header pays for that, so that planning does not.
    """
    weights_by_layers(shape)
    feature_counts(shape)
    prepare_sums(shape)
    return shape


def estimate_by_layers(shape: ModelShape, args: EngineArgs, device: str | None = None) -> ByLayers:
    """The bytes of both sides for every n_gpu_layers; `args.n_gpu_layers` is not looked at.

    `device` decides alignment and row padding: the first of `args.devices` by default, else a GPU.
    With `use_mmap` the host's repacked weights count twice: the file's pages stay mapped. Engine
    overhead is not in the figures (`budget.estimate.overhead`). Compute buffers are those of the
    fitted sums: microseconds, for planning; `estimate` has them to the byte where the graph is known.

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture is not known.
    """
    check_args(args, shape)
    if device is None:
        device = next((name for name in args.devices if name != HOST), "cuda:0")
    host, moved = _held(shape, args, device)
    on_host, on_device = compute_by_layers(shape, args)
    return ByLayers(
        PartsByLayers(*host, on_host + output_bytes(shape, args)), PartsByLayers(*moved, on_device)
    )


def estimate(shape: ModelShape, args: EngineArgs, devices: Sequence[str]) -> dict[str, Footprint]:
    """The footprint of the host and of each device, without engine overhead.

    `devices` are those that layers may go to, the host not among them; empty for the host alone.
    Figures for `cuda:N` have not been confirmed on a GPU. Compute buffers are what ggml's allocator
    reserves for the model's graph (`budget.estimate.graphs`), or near it by the fitted sums for the
    graphs that are not known. Over several devices, `args.tensor_split` says how many layers each
    gets, and compute buffers are near (`budget.estimate.spread`).

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture is not known, or not over several devices.
    """
    if len(devices) > 1:
        return spread(shape, replace(args, devices=tuple(devices)))
    device = devices[0] if devices else None
    placed = args if devices else replace(args, n_gpu_layers=0)
    check_args(placed, shape)
    graph = graph_of(shape, placed)
    if graph is None:
        both = estimate_by_layers(shape, placed, device)
        found = both.host.at(placed.n_gpu_layers), both.device.at(placed.n_gpu_layers)
    else:
        found = _by_graph(shape, placed, device or HOST, graph)
    return dict(zip([HOST, *devices], found, strict=False))


def _held(
    shape: ModelShape, args: EngineArgs, device: str
) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes]]:
    """Weights and state by n_gpu_layers, of the host and of the device."""
    weights = weights_by_layers(shape, repack=args.repack, device=device)
    host_weights = weights.host + (weights.repacked if args.use_mmap else 0)
    host_state, device_state = _split(kv_by_layer(shape, args) + recurrent_by_layer(shape, args))
    return (host_weights, host_state), (weights.device, device_state)


def _by_graph(
    shape: ModelShape, args: EngineArgs, device: str, graph: Graph
) -> tuple[Footprint, Footprint]:
    alignment = CUDA_ALIGNMENT if is_cuda(device) else HOST_ALIGNMENT
    alignments = {sides.HOST: HOST_ALIGNMENT, sides.DEVICE: alignment}
    buffers = reserved_bytes(graph, alignments)
    host, moved = _held(shape, args, device)
    layers = args.n_gpu_layers
    on_host = buffers[sides.HOST] + output_bytes(shape, args)
    return (
        Footprint(int(host[0][layers]), int(host[1][layers]), on_host),
        Footprint(int(moved[0][layers]), int(moved[1][layers]), buffers[sides.DEVICE]),
    )


def _split(by_layer: Bytes) -> tuple[Bytes, Bytes]:
    """Host and device sums by n_gpu_layers: the output goes first, then layers from the last on."""
    n_layers = len(by_layer)
    ahead = np.concatenate([[0], np.cumsum(by_layer)]).astype(np.int64)
    on_host = np.maximum(n_layers + 1 - np.arange(n_layers + 2), 0)
    host = ahead[np.minimum(on_host, n_layers)]
    return host, ahead[-1] - host
