"""Which layer goes to which of several devices, exactly as llama.cpp assigns them.

Source: llama.cpp `src/llama-model.cpp`, `load_tensors`: the shares are summed up and divided by their
total in single precision; layer `i` of those on devices goes to the first device whose sum is above
`i / n`. The output counts as the layer after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from budget.footprint import EngineArgs

ON_HOST = -1


def device_of_layers(
    tensor_split: Sequence[int], n_gpu_layers: int, n_layers: int
) -> NDArray[np.int64]:
    """The number of the device of each layer, the output's as the last; `ON_HOST` for the host.

    Without a split everything that is moved is on device 0.
    """
    moved = min(n_gpu_layers, n_layers + 1)
    first = n_layers + 1 - moved
    found = np.full(n_layers + 1, ON_HOST, dtype=np.int64)
    sums = np.cumsum(tensor_split or (1,), dtype=np.float32)
    sums = sums / sums[-1]
    if moved:
        places = np.arange(moved, dtype=np.float32) / np.float32(moved)
        found[first:] = np.searchsorted(sums, places, side="right")
    return found


def layers_by_device(
    tensor_split: Sequence[int], n_gpu_layers: int, n_layers: int
) -> tuple[int, ...]:
    """How many layers each device gets, the output among them."""
    numbers = device_of_layers(tensor_split, n_gpu_layers, n_layers)
    counts = np.bincount(numbers[numbers >= 0], minlength=max(len(tensor_split), 1))
    return tuple(int(count) for count in counts)


def normal(args: EngineArgs, n_layers: int) -> EngineArgs:
    """The same placement in its one normal form, which dry runs, engines and caches are keyed by.

    `tensor_split` counts the layers of each device. Devices that would get none are left out, and
    so are the servers behind them; a single device has no split.
    """
    rpc = used_servers(args.rpc, args.devices)
    names = args.layer_devices
    if len(names) < 2:
        return replace(args, rpc=rpc, tensor_split=())
    counts = layers_by_device(args.tensor_split, args.n_gpu_layers, n_layers)
    used = [(name, count) for name, count in zip(names, counts, strict=True) if count]
    if not used:
        return replace(args, rpc=rpc)
    devices = tuple(name for name, _ in used)
    split = tuple(count for _, count in used) if len(used) > 1 else ()
    return replace(args, devices=devices, tensor_split=split, rpc=used_servers(args.rpc, devices))


def used_servers(rpc: Sequence[str], devices: Sequence[str]) -> tuple[str, ...]:
    """The servers of the devices named, each at the numbers of its devices, others empty."""
    if not devices:  # all that there are
        return tuple(rpc)
    named = {f"RPC{number}": server for number, server in enumerate(rpc)}
    used = {named[name] for name in devices if name in named}
    kept = [server if server in used else "" for server in rpc]
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)
