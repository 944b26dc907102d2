"""`keepwarm inspect`: what a GGUF file takes, by device and part, before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import click

from backends.devices import Device, discover, is_rpc
from backends.footprint.inspect import Inspector, RequestedSource
from backends.gguf import GgufHeader, read_header
from backends.llama.rpc import rpc_devices
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs, Placement
from shim.cli.learned import learned_lines, learned_report
from shim.cli.options import json_option
from shim.cli.output import print_json, print_table, size

DEFAULT_CONTEXT: Final = 4096
FIRST_GPU: Final = "cuda:0"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of KV cache of all slots together; 4096, or what the model was trained for.",
)
@click.option("--slots", type=click.IntRange(min=1), default=1, help="Requests at the same time.")
@click.option("--kv-type", default="f16", help="Type of the KV cache.", show_default=True)
@click.option(
    "--n-gpu-layers",
    type=click.IntRange(min=0),
    help="Layers on the GPU; without it all of them on a GPU, none on the host.",
)
@click.option("--device", default="auto", help="auto, host, cuda:N or a device of llama.cpp.")
@click.option("--rpc", multiple=True, help="host:port of an RPC server; its device is RPC0.")
@click.option(
    "--source",
    type=click.Choice(["closed-form", "dry-run"]),
    help="Compute from the header, or ask llama.cpp; without it the dry run where it can be had.",
)
@json_option
def inspect(
    file: Path,
    context: int | None,
    slots: int,
    kv_type: str,
    n_gpu_layers: int | None,
    device: str,
    rpc: tuple[str, ...],
    source: Literal["closed-form", "dry-run"] | None,
    *,
    as_json: bool,
) -> None:
    """Show what a GGUF file takes before it is loaded.

    The device does not have to be here: one that is not is computed from the header.
    """
    header = read_header(file)
    shape = header.shape()
    if context is None:
        context = min(DEFAULT_CONTEXT, (shape.context_length or DEFAULT_CONTEXT) * slots)
    name, used = choose_device(device, n_gpu_layers, source)
    if is_rpc(name) and used != "closed-form":
        check_rpc(name, rpc)
    layers = n_gpu_layers if n_gpu_layers is not None else 0 if name == HOST else shape.n_layers + 1
    args = EngineArgs(
        n_ctx=context,
        slots=slots,
        kv_type_k=kv_type,
        kv_type_v=kv_type,
        n_gpu_layers=layers,
        embeddings=not shape.causal,
        rpc=rpc,
    )
    inspector = Inspector()
    placement = inspector.placement(header, args, name, used)
    learned = None
    if source != "closed-form":
        learned = learned_report(header.identity, placement.args, inspector.build_key())
    if used == "closed-form" and source is None:
        click.echo(f"{name} is not on this machine; computed from the header.", err=True)
    if as_json:
        print_json({**report(file, header, kv_type, placement), "learned": learned})
    else:
        _print(file, header, kv_type, placement)
        for line in learned_lines(learned) if learned else ():
            click.echo(line)


def choose_device(
    wanted: str, n_gpu_layers: int | None, source: Literal["closed-form", "dry-run"] | None
) -> tuple[str, RequestedSource]:
    """The device to inspect for, and the source: the closed form for a device that is not here.

    Raises:
        ConfigError: a dry run is asked for on a device that is not here.
    """
    here = discover()
    if wanted == "auto":
        wanted = _automatic(here, n_gpu_layers)
    names = [device.name for device in here]
    # Only NVIDIA's driver tells which devices are there; those of llama.cpp's own it tells itself.
    absent = wanted.startswith("cuda:") and wanted not in names
    if not absent:
        return wanted, source or "auto"
    if source == "dry-run":
        raise ConfigError(
            f"Device {wanted} is not here; here are {', '.join(names)}. A dry run needs it.",
            hint="Use --source closed-form for a device that is not here, or --n-gpu-layers 0.",
            device=wanted,
            devices=list(names),
        )
    return wanted, "closed-form"


def check_rpc(device: str, endpoints: tuple[str, ...]) -> None:
    """Ask the RPC servers whether that device is theirs.

    Raises:
        ConfigError: it is not, or one of them does not answer.
    """
    names = [found.name for found in rpc_devices(endpoints)]
    if device not in names:
        raise ConfigError(
            f"Device {device} is not there; the RPC servers have {', '.join(names) or 'none'}.",
            hint="Name every server with --rpc HOST:PORT, or use --source closed-form.",
            device=device,
            devices=list(names),
        )


def _automatic(here: list[Device], n_gpu_layers: int | None) -> str:
    gpu = next((device.name for device in here if device.kind == "cuda"), None)
    if n_gpu_layers == 0:
        return HOST
    return gpu or (FIRST_GPU if n_gpu_layers else HOST)


def report(file: Path, header: GgufHeader, kv_type: str, placement: Placement) -> dict[str, Any]:
    """What `inspect --json` prints."""
    return {
        "file": str(file),
        "architecture": header.architecture,
        "parameters": header.parameters,
        "file_type": header.file_type or header.quantization,
        "context": placement.args.n_ctx,
        "slots": placement.args.slots,
        "kv_type": kv_type,
        "n_gpu_layers": placement.args.n_gpu_layers,
        "n_layers": placement.n_layers,
        "devices": {
            device: {**asdict(part), "total_bytes": part.total_bytes}
            for device, part in placement.footprints.items()
        },
        "source": placement.source,
    }


def _print(file: Path, header: GgufHeader, kv_type: str, placement: Placement) -> None:
    shape, args = header.shape(), placement.args
    claimed = header.file_type
    kind = header.quantization
    if claimed and claimed != kind:
        kind += f" by its tensors ({claimed} by its own word)"
    click.echo(
        f"{header.name}: {header.architecture}, {header.parameters / 1e9:.2f} B weights, {kind}"
    )
    click.echo(
        f"{file}: {size(header.file_bytes)}; {shape.n_layers} layers, trained for "
        f"{shape.context_length} tokens, vocabulary {shape.n_vocab}"
    )
    click.echo(
        f"with context {args.n_ctx}, {args.slots} {'slot' if args.slots == 1 else 'slots'}, KV "
        f"{kv_type}, {args.n_gpu_layers} layers on the GPU, by {placement.source}"
    )
    if placement.reason:
        click.echo(placement.reason)
    click.echo()
    parts = ("weights", "kv", "compute", "overhead", "total")
    rows = [
        (device, *(size(getattr(part, f"{name}_bytes")) for name in parts))
        for device, part in placement.footprints.items()
    ]
    print_table(("device", *parts), rows, right=parts)
