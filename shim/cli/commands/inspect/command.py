"""`keepwarm inspect`: what a GGUF file takes, by device and part, before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import click

from backends.footprint.inspect import Inspector, RequestedSource
from backends.gguf import GgufHeader, read_header
from backends.llama.rpc.servers import rpc_devices
from backends.machine.devices import Device, discover, is_rpc
from budget.errors import ConfigError, InvalidRequest
from budget.footprint import HOST, EngineArgs, Placement
from shim.cli.commands.inspect.learned_lines import learned_lines, learned_report
from shim.cli.console.output import counted, print_json, print_table, size
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option

DEFAULT_CONTEXT: Final = 4096
FIRST_GPU: Final = "cuda:0"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of KV cache of all slots together. Default: 4096, or the context the model was trained "
    "for if that is less.",
)
@click.option(
    "--slots", type=click.IntRange(min=1), default=1, help="Requests that run at the same time."
)
@click.option("--kv-type", default="f16", help="Type of the KV cache.", show_default=True)
@click.option(
    "--n-gpu-layers",
    type=click.IntRange(min=0),
    help="Layers on the GPU. Default: all of them on a GPU, none on the host.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="auto, host, cuda:N or RPCn. Give several to spread the layers over them.",
)
@click.option(
    "--tensor-split",
    help="Layers on each of several devices, such as 20,13. Default: equal numbers.",
)
@click.option(
    "--rpc", multiple=True, help="host:port of an RPC server. The first server's device is RPC0."
)
@click.option(
    "--source",
    type=click.Choice(["closed-form", "dry-run"]),
    help="Compute from the header, or ask llama.cpp. Default: a dry run where llama.cpp can do one.",
)
@json_option
def inspect(
    file: Path,
    context: int | None,
    slots: int,
    kv_type: str,
    n_gpu_layers: int | None,
    devices: tuple[str, ...],
    tensor_split: str | None,
    rpc: tuple[str, ...],
    source: Literal["closed-form", "dry-run"] | None,
    *,
    as_json: bool,
) -> None:
    """Show what a GGUF file takes before it is loaded.

    The device does not have to be on this machine: the bytes are then computed from the header.
    """
    header = read_header(file)
    shape = header.shape()
    if context is None:
        context = min(DEFAULT_CONTEXT, (shape.context_length or DEFAULT_CONTEXT) * slots)
    names, used = choose_devices(devices, n_gpu_layers, source)
    if any(map(is_rpc, names)) and used != "closed-form":
        rpc = servers_by_device(names, rpc)
    name, whole = names[0], shape.n_layers + 1
    layers = n_gpu_layers if n_gpu_layers is not None else 0 if name == HOST else whole
    args = EngineArgs(
        n_ctx=context,
        slots=slots,
        kv_type_k=kv_type,
        kv_type_v=kv_type,
        n_gpu_layers=layers,
        embeddings=not shape.causal,
        rpc=rpc,
        devices=names if len(names) > 1 else (),
        tensor_split=split_of(tensor_split, names, layers),
    )
    inspector = Inspector()
    placement = inspector.placement(header, args, name, used)
    learned = None
    if source != "closed-form":
        learned = learned_report(header.identity, placement.args, inspector.build_key())
    if used == "closed-form" and source is None:
        say(f"{name} is not on this machine; computed from the header.", err=True)
    if as_json:
        print_json({**report(file, header, kv_type, placement), "learned": learned})
    else:
        _print(file, header, kv_type, placement)
        for line in learned_lines(learned) if learned else ():
            say(line)


def choose_devices(
    wanted: tuple[str, ...],
    n_gpu_layers: int | None,
    source: Literal["closed-form", "dry-run"] | None,
) -> tuple[tuple[str, ...], RequestedSource]:
    """The devices to inspect for, and the source: the closed form where one of them is not here.

    Raises:
        InvalidRequest: `auto` or the host among several.
        ConfigError: a dry run is asked for on a device that is not here.
    """
    if len(wanted) > 1 and {"auto", HOST} & set(wanted):
        raise InvalidRequest(
            f"--device {', '.join(wanted)}: layers are spread over devices named one by one.",
            hint="Leave auto and host out; what stays on the host is counted anyway.",
        )
    here = discover()
    there = [device.name for device in here]
    automatic = _automatic(here, n_gpu_layers)
    names = tuple(automatic if name == "auto" else name for name in wanted or ("auto",))
    # NVIDIA's driver lists GPUs only. llama.cpp itself tells whether one of its other devices is there.
    absent = [name for name in names if name.startswith("cuda:") and name not in there]
    if absent and source == "dry-run":
        raise ConfigError(
            f"Device {absent[0]} is not here; here are {', '.join(there)}. A dry run needs it.",
            hint="Use --source closed-form for a device that is not here, or --n-gpu-layers 0.",
            device=absent[0],
            devices=there,
        )
    return names, "closed-form" if absent else source or "auto"


def split_of(text: str | None, names: tuple[str, ...], layers: int) -> tuple[int, ...]:
    """The layers of each device: as asked for, or as many on each.

    Raises:
        InvalidRequest: the text is no list of numbers, or not one for each device.
    """
    if text is None:
        each, rest = divmod(max(layers, 1), len(names))
        even = tuple(each + (number < rest) for number in range(len(names)))
        return even if len(names) > 1 else ()
    parts = text.split(",")
    if len(parts) != len(names) or not all(part.isdecimal() for part in parts):
        raise InvalidRequest(
            f"--tensor-split {text!r} is not a number of layers for each of {', '.join(names)}.",
            hint="Name each device with --device, and say --tensor-split 20,13.",
        )
    return tuple(int(part) for part in parts) if len(names) > 1 else ()


def servers_by_device(devices: tuple[str, ...], endpoints: tuple[str, ...]) -> tuple[str, ...]:
    """Ask the RPC servers for their devices; the server of each, in order.

    Raises:
        ConfigError: a device belongs to none of the servers, or a server does not answer.
    """
    found = rpc_devices(endpoints)
    names = [device.name for device in found]
    for device in devices:
        if is_rpc(device) and device not in names:
            raise ConfigError(
                f"No RPC server has the device {device}; the servers have {', '.join(names) or 'none'}.",
                hint="Name every server with --rpc HOST:PORT, or use --source closed-form.",
                device=device,
                devices=list(names),
            )
    return tuple(device.server for device in found)


def _automatic(here: list[Device], n_gpu_layers: int | None) -> str:
    gpu = next((device.name for device in here if device.kind == "cuda"), None)
    if n_gpu_layers == 0:
        return HOST
    return gpu or (FIRST_GPU if n_gpu_layers else HOST)


def report(file: Path, header: GgufHeader, kv_type: str, placement: Placement) -> dict[str, Any]:
    """What `inspect --json` prints."""
    return {
        "file": file,
        "architecture": header.architecture,
        "parameters": header.parameters,
        "file_type": header.file_type or header.quantization,
        "context": placement.args.n_ctx,
        "slots": placement.args.slots,
        "kv_type": kv_type,
        "n_gpu_layers": placement.args.n_gpu_layers,
        "tensor_split": list(placement.args.tensor_split),
        "n_layers": placement.n_layers,
        "devices": {
            device: {**asdict(part), "total_bytes": part.total_bytes}
            for device, part in placement.footprints.items()
        },
        "source": placement.source,
    }


def told_layers(args: EngineArgs) -> str:
    """How many layers are on which device, as text."""
    if not args.tensor_split:
        return f"{args.n_gpu_layers} layers on the GPU"
    parts = zip(args.layer_devices, args.tensor_split, strict=True)
    return "layers: " + ", ".join(f"{count} on {device}" for device, count in parts)


def _count(parameters: int) -> str:
    """A number of weights as people write it: 8.03 B, 158 M."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def _print(file: Path, header: GgufHeader, kv_type: str, placement: Placement) -> None:
    shape, args = header.shape(), placement.args
    claimed = header.file_type
    kind = header.quantization
    if claimed and claimed != kind:
        kind += f" by its tensors ({claimed} by its metadata)"
    say(f"{header.name}: {header.architecture}, {_count(header.parameters)} weights, {kind}")
    say(
        f"{file}: {size(header.file_bytes)}; {shape.n_layers} layers, trained for "
        f"{shape.context_length} tokens, vocabulary {shape.n_vocab}"
    )
    say(
        f"with context {args.n_ctx}, {counted(args.slots, 'slot')}, KV "
        f"{kv_type}, {told_layers(args)}, by {placement.source}"
    )
    if placement.reason:
        say(placement.reason)
    click.echo()
    parts = ("weights", "kv", "compute", "overhead", "total")
    rows = [
        (device, *(size(getattr(part, f"{name}_bytes")) for name in parts))
        for device, part in placement.footprints.items()
    ]
    print_table(("device", *parts), rows, right=parts)
