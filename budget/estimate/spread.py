"""Footprints over several devices: layers as llama.cpp divides them, compute buffers on each.

With every layer on devices, llama.cpp computes in a pipeline (`src/llama-context.cpp`,
`pipeline_parallel`): the scheduler keeps four copies of every input of a device, and of what crosses
to it, for the whole graph (`ggml/src/ggml-backend.cpp`, `GGML_SCHED_MAX_COPIES`). So a buffer is that
of a device alone with the same layers, three more copies of its inputs, and four of the activations
that come in. That was compared with dry runs over RPC devices (docs/accuracy.md); recurrent layers hand
on more than their activations, and are not known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.errors import MeasurementFailed
from budget.estimate import ggml_graph as sides
from budget.estimate.allocator import reserved_bytes
from budget.estimate.arguments import check_args
from budget.estimate.compute import (
    ALIGNMENT,
    compute_by_layers,
    output_bytes,
    sums_of,
)
from budget.estimate.features import FEATURES, counts_of_layers, feature_scales, mode
from budget.estimate.graphs import graph_of
from budget.estimate.kv import kv_by_layer
from budget.estimate.recurrent import recurrent_by_layer
from budget.estimate.shape import ModelShape
from budget.estimate.split import ON_HOST, device_of_layers
from budget.estimate.weights import weights_by_layers, weights_of_layers
from budget.footprint import HOST, EngineArgs, Footprint

COPIES: Final = 4
"""Of inputs, in a pipeline."""

_CROSS_TWICE: Final = frozenset({"bert"})
"""Where the embeddings cross to the first layer both before and after they are normed."""

_KINDS: Final = ("cuda:", "RPC")
"""Devices that llama.cpp pipelines: they compute asynchronously and have events."""
_PLACES: Final = ("output", "last", "some", "all")
_COLUMN: Final = {name: i for i, name in enumerate(FEATURES)}
Flags = NDArray[np.bool_]


def spread(shape: ModelShape, args: EngineArgs) -> dict[str, Footprint]:
    """The footprint of the host and of each of `args.devices`, without engine overhead.

    Figures for `cuda:N` have not been confirmed on GPUs.

    Raises:
        ConfigError: the arguments are impossible.
        MeasurementFailed: the architecture, or the kind of device, is not known with several.
    """
    check_args(args, shape)
    _check_known(shape, args)
    layers = args.n_gpu_layers
    places = device_of_layers(args.tensor_split, layers, shape.n_layers)
    state = kv_by_layer(shape, args) + recurrent_by_layer(shape, args)
    weights = weights_by_layers(shape, repack=args.repack, device=args.layer_devices[0])
    twice = int(weights.repacked[layers]) if args.use_mmap else 0
    found = {
        HOST: Footprint(
            int(weights.host[layers]) + twice,
            int(state[places[:-1] == ON_HOST].sum()),
            _host_compute(shape, args) + output_bytes(shape, args),
        )
    }
    for number, device in enumerate(args.layer_devices):
        mine = places == number
        found[device] = Footprint(
            _weights(shape, device, mine),
            int(state[mine[:-1]].sum()),
            _device_compute(shape, args, mine) if mine.any() else 0,
        )
    return found


def _check_known(shape: ModelShape, args: EngineArgs) -> None:
    if shape.is_recurrent and not shape.has_attention:
        raise MeasurementFailed(
            f"there is no closed form for {shape.architecture!r} over several devices.",
            hint="Measure it by dry run, or place it on one device.",
            architecture=shape.architecture,
            devices=list(args.layer_devices),
        )
    other = [name for name in args.layer_devices if not name.startswith(_KINDS)]
    if other:
        raise MeasurementFailed(
            f"whether {', '.join(other)} compute in a pipeline with others is not known.",
            hint="Measure a split over them by dry run.",
            devices=other,
        )


def _weights(shape: ModelShape, device: str, mine: Flags) -> int:
    by_layer, shared = weights_of_layers(shape, device)
    return int(by_layer[mine].sum()) + shared * bool(mine[:-1].any())


def _alone(shape: ModelShape, args: EngineArgs, layers: int) -> tuple[int, int]:
    """Compute buffers of the host and of one device, were it the only one and had so many layers."""
    one = replace(args, n_gpu_layers=layers, devices=args.layer_devices[:1], tensor_split=())
    graph = graph_of(shape, one)
    if graph is None:
        host, device = compute_by_layers(shape, one)
        return int(host[layers]), int(device[layers])
    found = reserved_bytes(graph, {sides.HOST: ALIGNMENT, sides.DEVICE: ALIGNMENT})
    return found[sides.HOST], found[sides.DEVICE]


def _is_pipeline(shape: ModelShape, args: EngineArgs) -> bool:
    return args.n_gpu_layers > shape.n_layers


def _host_compute(shape: ModelShape, args: EngineArgs) -> int:
    alone = _alone(shape, args, args.n_gpu_layers)[0]
    if not _is_pipeline(shape, args):
        return alone
    counts = counts_of_layers(shape, np.ones(shape.n_layers, dtype=bool))
    # Beside the masks the host keeps the activations that a request without tokens would bring.
    return alone + (COPIES - 1) * (inputs_bytes(shape, args, counts) + _activations(shape, args))


def _device_compute(shape: ModelShape, args: EngineArgs, mine: Flags) -> int:
    count, has_output = int(mine.sum()), bool(mine[-1])
    pipeline = _is_pipeline(shape, args)
    counts = counts_of_layers(shape, mine[:-1])
    place = min(count, 3) - 1 if has_output else 2
    if pipeline and place == 2:
        place = 3
    if has_output and (place < 3 or _like_all(shape, counts)):
        n_bytes = _alone(shape, args, count if place < 3 else shape.n_layers + 1)[1]
    elif _like_all(shape, counts) and not args.embeddings:
        # Logits are few: without the output a device takes as much as with it.
        n_bytes = _alone(shape, args, shape.n_layers + (place == 3))[1]
    else:
        n_bytes = _largest(
            shape, args, counts, _PLACES[place], has_output=has_output and shape.causal
        )
    if pipeline and place:
        n_bytes += (COPIES - 1) * inputs_bytes(shape, args, counts)
        twice = bool(mine[0]) and shape.architecture in _CROSS_TWICE
        n_bytes += (2 if twice else 1) * COPIES * _activations(shape, args)
    elif pipeline:
        n_bytes += COPIES * int(feature_scales(shape, args)[_COLUMN["output_rows"]]) * shape.n_embd
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _like_all(shape: ModelShape, counts: NDArray[np.float64]) -> bool:
    """Whether a device's layers are as wide as all of the model's."""
    every = counts_of_layers(shape, np.ones(shape.n_layers, dtype=bool))
    return bool((counts == every).all())


def _largest(
    shape: ModelShape,
    args: EngineArgs,
    counts: NDArray[np.float64],
    place: str,
    *,
    has_output: bool,
) -> int:
    """The buffer of a device alone that is at this place of a split."""
    kernels = mode(shape, args)
    sums = sums_of(shape.architecture, "device", kernels, has_output=has_output)
    rows = sums.weights[sums.places == _PLACES.index(place)]
    if not has_output:
        rows = rows * (np.arange(len(FEATURES)) != _COLUMN["logits"])
    row = counts * feature_scales(shape, args)
    return int(np.einsum("sf,f->s", rows, row).max(initial=0.0))


def _activations(shape: ModelShape, args: EngineArgs) -> int:
    return int(feature_scales(shape, args)[_COLUMN["embd"]]) * shape.n_embd


def inputs_bytes(shape: ModelShape, args: EngineArgs, counts: NDArray[np.float64]) -> int:
    """The inputs of the graph that a device with these layers gets, one copy of each.

    Masks, positions, and without flash attention the indices of values: one of them for each cache,
    none without a cache of values (`src/llama-kv-cache.cpp`, `build_input_v_idxs`).
    """
    each = dict(zip(FEATURES, counts * feature_scales(shape, args), strict=True))
    caches = int(each["all_mask"] > 0) + int(each["all_mask_window"] > 0)
    values = caches if shape.causal and not shape.is_mla else 0
    found = each["all_mask"] + each["all_mask_window"] + 5 * each["ids"]
    return int(found + values * each["all_v_ids"] + caches * each["rotation"])
