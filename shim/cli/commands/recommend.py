"""`keepwarm recommend`: how each model would run here, with which runtime, and how fast."""

from __future__ import annotations

import click

from budget.errors import InvalidRequest
from shim.cli.console.context import read_config
from shim.cli.console.output import print_json, print_table, size
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config.schema.values import parse_amount
from shim.placement.recommendations import (
    ROLE_TYPES,
    Advice,
    Target,
    WrittenRole,
    advise,
    here,
    subjects,
)

_GB = 1e9


@click.command()
@click.argument("models", nargs=-1, metavar="[FILE|NAME|CONFIGURED]...")
@click.option("--vram", help='Bytes of GPUs that need not be here: "8GiB" or "8GiB,12GiB".')
@click.option(
    "--bandwidth", type=float, help="Memory bandwidth of each GPU by its data sheet, in GB/s."
)
@click.option(
    "--gpus", type=click.IntRange(min=1), help="Number of GPUs when all have the size of --vram."
)
@click.option("--host-bandwidth", type=float, help="The host's memory bandwidth, in GB/s.")
@click.option("--host-memory", help='The host\'s memory, such as "32GiB".')
@click.option(
    "--role",
    type=click.Choice([*ROLE_TYPES]),
    help="What it is for: a built-in name then means Q4_K_M, for an evaluator Q8_0.",
)
@click.option("--device", help="A device of this machine, instead of --vram.")
@click.option(
    "--users", type=click.IntRange(min=1), default=1, help="Requests that run at the same time."
)
@click.option("--context", type=click.IntRange(min=1), default=4096, help="Tokens of each request.")
@click.option("--kv-type", default="f16", help="Type of the KV cache.", show_default=True)
@json_option
@click.pass_context
def recommend(
    ctx: click.Context,
    models: tuple[str, ...],
    vram: str | None,
    bandwidth: float | None,
    gpus: int | None,
    host_bandwidth: float | None,
    host_memory: str | None,
    role: WrittenRole | None,
    device: str | None,
    users: int,
    context: int,
    kv_type: str,
    *,
    as_json: bool,
) -> None:
    """Say how each model would run here: whole, split or on the CPU, and how fast.

    A model is a GGUF file, a configured model or a built-in name (llama-3.1-8b, or
    llama-3.1-8b:Q4_K_M). Without a model the command speaks of all built-in names. The command
    needs no GPU and no llama.cpp.
    """
    if vram is not None and device is not None:
        raise InvalidRequest("--vram and --device contradict each other.", hint="Give one of them.")
    target = here(
        vram=_gpus(vram, gpus),
        bandwidth_bytes_per_s=_rate("--bandwidth", bandwidth),
        host_bytes=None if host_memory is None else _bytes("--host-memory", host_memory),
        host_bytes_per_s=_rate("--host-bandwidth", host_bandwidth),
        device=device,
    )
    named = subjects(models, read_config(ctx), role)
    rows = [advise(subject, target, users, context, kv_type) for subject in named]
    if as_json:
        told = [row.to_json() for row in rows]
        asked = {"users": users, "context": context}
        print_json({"target": target.to_json(), **asked, "models": told})
    else:
        _print(target, rows)


def _gpus(vram: str | None, count: int | None) -> list[int] | None:
    """The bytes of each GPU in question; None for the GPUs of this machine."""
    if vram is None:
        if count is not None:
            raise InvalidRequest("--gpus counts GPUs of --vram.", hint="Say --vram 8GiB too.")
        return None
    sizes = [_bytes("--vram", text.strip()) for text in vram.split(",")]
    if count is not None and len(sizes) > 1:
        raise InvalidRequest(
            "--gpus and several sizes contradict each other.", hint="Give one of them."
        )
    return sizes * (count or 1)


def _bytes(option: str, text: str) -> int:
    try:
        found = parse_amount(text).fixed_bytes
    except ValueError as error:
        raise InvalidRequest(f"{option} {text!r}: {error}.", hint='Say "8GiB".') from None
    if not found:
        raise InvalidRequest(f"{option} {text!r} is no number of bytes.", hint='Say "8GiB".')
    return found


def _rate(option: str, gb_per_s: float | None) -> float | None:
    if gb_per_s is None:
        return None
    if not 0.0 < gb_per_s < 1e6:
        raise InvalidRequest(f"{option} {gb_per_s:g} is no bandwidth.", hint="Give GB/s, above 0.")
    return gb_per_s * _GB


def _print(target: Target, rows: list[Advice]) -> None:
    gpu = " + ".join(size(n_bytes) for n_bytes in target.vram) or "no GPU"
    say(f"{gpu}, host {size(target.host_bytes)}; bandwidths {target.origin}")
    click.echo()
    table = [
        (
            row.name,
            row.file_type,
            size(row.total_bytes),
            row.verdict,
            row.kind or "",
            row.runtime,
            f"{row.tokens_per_s:.1f}" if row.tokens_per_s else "",
            f"{row.cpu_tokens_per_s:.1f}" if row.cpu_tokens_per_s else "",
            row.reason,
        )
        for row in rows
    ]
    columns = ("model", "type", "bytes", "", "placed", "runtime", "tokens/s", "CPU alone", "why")
    print_table(columns, table, right=("bytes", "tokens/s", "CPU alone"))
    if not rows:
        click.echo("There is no model to recommend anything for.")
