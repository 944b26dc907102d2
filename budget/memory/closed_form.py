"""Footprints from the header alone, for one placement or for all n_gpu_layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.arguments import check_args
from budget.memory.compute import compute_bytes
from budget.memory.compute_bound import check_memory
from budget.memory.kv_cache import kv_by_layer
from budget.memory.recurrent import recurrent_by_layer
from budget.memory.shape import ModelShape
from budget.memory.split import ON_HOST, device_of_layers
from budget.memory.weights import weights_by_layers, weights_of_layers

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


def estimate_by_layers(shape: ModelShape, args: EngineArgs, device: str | None = None) -> ByLayers:
    """The bytes of both sides for every n_gpu_layers, to plan with; `args.n_gpu_layers` is not looked at.

    `device` decides alignment and row padding: the first of `args.devices` by default, else a GPU.
    With `use_mmap` the host's repacked weights count twice: the file's pages stay mapped. Engine
    overhead is not in the figures (`budget.memory.overhead`). Weights and state are exact everywhere.
    Compute buffers are evaluated at a few places of the split; between two of them stands the larger of
    both, which is not low where layers repeat. What is chosen is verified with `estimate`.

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture has a cache of a kind that is not known.
    """
    check_args(args, shape)
    check_memory(shape)
    if device is None:
        device = next((name for name in args.devices if name != HOST), "cuda:0")
    weights = weights_by_layers(shape, repack=args.repack, device=device)
    host_weights = weights.host + (weights.repacked if args.use_mmap else 0)
    host_state, device_state = _split(kv_by_layer(shape, args) + recurrent_by_layer(shape, args))
    one = replace(args, devices=(device,), tensor_split=())
    on_host, on_device = _between(shape, one)
    return ByLayers(
        PartsByLayers(host_weights, host_state, on_host),
        PartsByLayers(weights.device, device_state, on_device),
    )


def estimate(shape: ModelShape, args: EngineArgs, devices: Sequence[str]) -> dict[str, Footprint]:
    """The footprint of the host and of each device, without engine overhead.

    `devices` are those that layers may go to, the host not among them; empty for the host alone. Over
    several of them `args.tensor_split` says how many layers each gets. Figures for `cuda:N` have not been
    confirmed on a GPU. Compute buffers are exact or a bound (`budget.memory.compute.is_exact`).

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture has a cache of a kind that is not known.
    """
    placed = replace(args, devices=tuple(devices), n_gpu_layers=args.n_gpu_layers if devices else 0)
    if len(devices) < 2:
        placed = replace(placed, tensor_split=())
    check_args(placed, shape)
    check_memory(shape)
    layers, kind = placed.n_gpu_layers, devices[0] if devices else HOST
    places = device_of_layers(placed.tensor_split, layers, shape.n_layers)
    state = kv_by_layer(shape, placed) + recurrent_by_layer(shape, placed)
    weights = weights_by_layers(shape, repack=placed.repack, device=kind)
    twice = int(weights.repacked[layers]) if placed.use_mmap else 0
    compute = compute_bytes(shape, placed)
    found = {
        HOST: Footprint(
            int(weights.host[layers]) + twice,
            int(state[places[:-1] == ON_HOST].sum()),
            compute[HOST],
        )
    }
    for number, device in enumerate(devices):
        mine = places == number
        found[device] = Footprint(
            _weights(shape, device, mine), int(state[mine[:-1]].sum()), compute[device]
        )
    return found


def _weights(shape: ModelShape, device: str, mine: NDArray[np.bool_]) -> int:
    by_layer, shared = weights_of_layers(shape, device)
    return int(by_layer[mine].sum()) + shared * bool((mine[:-1] & shape.table.sharing).any())


def _places(shape: ModelShape) -> list[int]:
    """Both ends, where the output and single layers decide, and two neighbours in the middle.

    Where layers read another one's cache, also those places between which that one is moved. Short
    convolutions make every border another one (`auto` may turn flash attention off).
    """
    whole, shared = shape.n_layers + 1, shape.n_layers_shared_kv
    if shape.key("shortconv.l_cache"):
        return list(range(whole + 1))
    asked = {0, 1, 2, 3, whole // 2, whole // 2 + 1, whole - 1, whole}
    asked |= {shared + 1, shared + 2, shared + 3} if shared else set()
    return sorted({min(k, whole) for k in asked})


def _between(shape: ModelShape, args: EngineArgs) -> tuple[Bytes, Bytes]:
    """Compute buffers of both sides by n_gpu_layers."""
    (device,) = args.devices
    known = _places(shape)
    found = [compute_bytes(shape, replace(args, n_gpu_layers=k)) for k in known]
    sides = []
    for side in (HOST, device):
        amounts = np.array([each[side] for each in found], dtype=np.int64)
        counts = np.arange(shape.n_layers + 2)
        above = np.searchsorted(known, counts)
        below = np.searchsorted(known, counts, side="right") - 1
        sides.append(np.maximum(amounts[above], amounts[below]))
    return sides[0], sides[1]


def _split(by_layer: Bytes) -> tuple[Bytes, Bytes]:
    """Host and device sums by n_gpu_layers: the output goes first, then layers from the last on."""
    n_layers = len(by_layer)
    ahead = np.concatenate([[0], np.cumsum(by_layer)]).astype(np.int64)
    on_host = np.maximum(n_layers + 1 - np.arange(n_layers + 2), 0)
    host = ahead[np.minimum(on_host, n_layers)]
    return host, ahead[-1] - host
