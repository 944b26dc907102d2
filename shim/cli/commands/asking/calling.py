"""`keepwarm call`: a payload to a Python model, its result as JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from budget.errors import InvalidRequest
from shim.cli.commands.asking.question import asked, named
from shim.cli.console.at_model import at_model
from shim.cli.console.failure import outside, remember_json
from shim.cli.console.output import print_json
from shim.cli.console.shared_options import model_argument, read_stdin


def _named(_: click.Context, parameter: click.Parameter, given: Iterable[str]) -> dict[str, Path]:
    """`NAME=PATH` options as a table."""
    table = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise click.BadParameter(f"{text!r} is not NAME=PATH.", param=parameter)
        table[name] = Path(path)
    return table


@click.command()
@model_argument
@click.option(
    "--json", "given", metavar="JSON", help="The payload, an object; - reads it from stdin."
)
@click.option(
    "--file",
    "files",
    metavar="NAME=PATH",
    multiple=True,
    callback=_named,
    help="A field of the payload: the bytes of a file.",
)
@click.option(
    "--save",
    "saved",
    metavar="NAME=PATH",
    multiple=True,
    callback=_named,
    help="Write a field of the result to a file: bytes as they are, an array as .npy.",
)
@click.option("--stream", is_flag=True, help="Print the items of a generator, one line each.")
@click.pass_context
def call(
    ctx: click.Context,
    model: str,
    given: str | None,
    files: dict[str, Path],
    saved: dict[str, Path],
    *,
    stream: bool,
) -> None:
    """Call a Python model and print its result as JSON.

    Bytes in the result are printed as their number, arrays as lists; --save keeps them.

    Example: keepwarm call whisper --file audio=hello.wav --json '{"language": "en"}'
    """
    remember_json(ctx, None, True)  # noqa: FBT003 - the callback of --json elsewhere
    payload = _payload(given, files)
    chosen = named(ctx, model)
    if stream:
        with (
            at_model(chosen, "call") as there,
            there.shim.stream_call(there.model, **payload) as items,
        ):
            for item in items:
                print_json(_printable(_kept(item, saved)))
        return
    reply = asked(chosen, "call", lambda shim, model: shim.call(model, **payload))
    print_json(
        {
            "model": reply.model,
            "value": _printable(_kept(reply.value, saved)),
            "residency": asdict(reply.residency),
            "total_s": reply.total_s,
        }
    )


def _payload(given: str | None, files: Mapping[str, Path]) -> dict[str, Any]:
    text = read_stdin() if given == "-" else given or "{}"
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--json is no JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise InvalidRequest("--json is not an object.", hint='Give one, such as {"n": 3}.')
    for name, path in files.items():
        try:
            payload[name] = path.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"--file {name}: {path}: {error.strerror or error}.") from None
    return payload


def _kept(value: Any, saved: Mapping[str, Path]) -> Any:
    """The result with the fields that are written to files replaced by their places."""
    if not saved:
        return value
    if not isinstance(value, dict) or (missing := sorted(saved.keys() - value.keys())):
        fields = sorted(value) if isinstance(value, dict) else []
        raise InvalidRequest(
            f"The result has no field {missing[0] if fields else next(iter(saved))}.",
            hint=f"It has: {', '.join(fields) or 'none'}.",
        )
    return value | {name: _written(name, value[name], path) for name, path in saved.items()}


def _written(name: str, value: Any, path: Path) -> dict[str, Any]:
    with outside(f"--save {name}: {path}", "written"):
        if isinstance(value, bytes):
            path.write_bytes(value)
            return {"saved": path, "bytes": len(value)}
        if hasattr(value, "dtype"):
            # Only here, because numpy takes its time to import.
            with path.open("wb") as file:
                importlib.import_module("numpy").save(file, value)
            return {"saved": path, "bytes": value.nbytes}
    raise InvalidRequest(f"The field {name} is neither bytes nor an array.")


def _printable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, dict):
        return {name: _printable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return _printable(value.tolist()) if hasattr(value, "dtype") else value
