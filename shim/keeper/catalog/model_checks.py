"""What is wrong with a configured model, before any of its bytes are measured.

The keeper raises the first fault when it prepares a model; `keepwarm config check` lists all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from backends.footprint.companion_files import adapter
from backends.gguf import GgufHeader, read_header
from backends.llama.binding.binding_engine import check_binding_args
from backends.llama.known_options import check_options
from budget.errors import ConfigError, KeepwarmError
from budget.footprint import EngineArgs
from budget.memory.arguments import check_args
from budget.memory.further.option_values import trained_context
from budget.memory.shape import ModelShape
from shim.config import ModelEntry
from shim.config.role_checks import check_role
from shim.placement.requested import engine_args, fitted_args, sizes_of

Check = Callable[[], object]


def faults(name: str, entry: ModelEntry, header: GgufHeader) -> Iterator[tuple[str, KeepwarmError]]:
    """Each fault of a model whose header was read, with the key of the configuration that it is about."""
    found: set[str] = set()
    for key, check in _checks(name, entry, header):
        if key in found:
            continue
        try:
            check()
        except KeepwarmError as error:
            where = _key_of(error) or key
            if where not in found:
                yield where, error
            found |= {key, where}


def _checks(name: str, entry: ModelEntry, header: GgufHeader) -> Iterator[tuple[str, Check]]:
    try:
        shape = header.shape()
    except KeepwarmError:
        yield "path", header.shape
        return
    args = fitted_args(engine_args(entry), entry, shape, sizes_of(entry)[0])
    yield "role", partial(check_role, name, entry, header)
    yield "context", partial(_check_context, name, entry, shape)
    yield "engine_args", partial(check_options, entry.engine_args, entry.llama_server)
    if args.binding:
        yield "engine_args", partial(check_binding_args, args)
    yield from _companion_checks(entry, shape, args)
    yield "path", partial(check_args, args, shape)


def _companion_checks(
    entry: ModelEntry, shape: ModelShape, args: EngineArgs
) -> Iterator[tuple[str, Check]]:
    if entry.draft_model is not None:
        yield "draft_model", partial(_read_shape, entry.draft_model)
    if entry.mmproj is not None:
        yield "mmproj", partial(read_header, entry.mmproj)
    for path in entry.lora:
        yield "lora", partial(adapter, str(path), shape, args)


def _read_shape(path: Path) -> ModelShape:
    return read_header(path).shape()


def _check_context(name: str, entry: ModelEntry, shape: ModelShape) -> None:
    trained = trained_context(entry.engine_args, shape)
    if "context" not in entry.model_fields_set or not entry.context_per_slot > trained > 0:
        return
    raise ConfigError(
        f"{name}: {entry.context} tokens for {entry.slots} {'slot' if entry.slots == 1 else 'slots'} are "
        f"{entry.context_per_slot} a slot; the model was trained for {trained}.",
        hint=f"Lower [models.{name}] context to at most {trained * entry.slots}, or stretch the "
        'model in engine_args: ["--rope-scaling", "yarn", "--rope-scale", "4"].',
    )


def _key_of(error: KeepwarmError) -> str | None:
    """The key that an error of the arguments is about."""
    argument = str(error.facts.get("argument", ""))
    if argument.startswith("-"):
        return "engine_args"
    return argument if argument in ModelEntry.model_fields else None
