"""Keys that a configuration leaves out follow the model's file: the context, and an embedder's batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.inspect import Inspector
from backends.machine.devices import Device
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs
from shim import Shim
from shim.config import Config, ModelEntry
from shim.keeper.catalog.preparing import prepare
from shim.placement.budgeted_devices import BudgetDevices
from shim.placement.requested import asked_of
from tests.keeper.catalog.changing import closed_form
from tools.shape_layouts import Shape
from tools.shapes import SHAPES, write


def shape(name: str, context: int, **extra: Any) -> Shape:
    """A named model with one layer, trained for that context."""
    base = SHAPES[name]
    return replace(base, n_layers=1, context=context, extra={**base.extra, **extra})


def entry_of(path: Path, **keys: Any) -> ModelEntry:
    """The entry of a model with these keys."""
    return Config.from_mapping({"models": {"m": {"path": str(path), **keys}}}).models["m"]


def host_of() -> BudgetDevices:
    """A host with more bytes than any model here takes."""
    return BudgetDevices((Device(HOST, "host", 0, 0, HOST, ""),), {HOST: 1 << 40}, {})


def args_of(folder: Path, found: Shape, **keys: Any) -> EngineArgs:
    """The arguments with which a model of this shape is placed on the host."""
    entry = entry_of(write(found, folder), **keys)
    with closed_form():
        return prepare("m", entry, host_of(), Inspector(FootprintCache(folder))).placements[0].args


@pytest.mark.parametrize(
    ("trained", "keys", "n_ctx"),
    [
        (512, {}, 512),
        (2048, {"slots": 2}, 4096),
        (512, {"slots": 4}, 2048),
        (8192, {}, 4096),
    ],
)
def test_a_context_that_is_left_out_is_at_most_the_trained_one(
    trained: int, keys: dict[str, Any], n_ctx: int, tmp_path: Path
) -> None:
    """An embedder trained for 512 or 2,048 tokens runs with the README's own configuration."""
    found = args_of(tmp_path, shape("bge-small", trained), role="embedder", **keys)
    assert found.n_ctx == n_ctx


def test_a_context_that_was_written_is_held_to_the_trained_one(tmp_path: Path) -> None:
    """What a user asks for and cannot get is refused, also where it is the default's number."""
    with pytest.raises(ConfigError, match="trained for 512"):
        args_of(tmp_path, shape("bge-small", 512), role="embedder", context=4096)


@pytest.mark.parametrize(
    ("keys", "batches"),
    [
        ({"role": "embedder"}, (4096, 4096)),
        ({"role": "embedder", "slots": 4}, (1024, 2048)),
        ({"role": "embedder", "context": 96}, (512, 2048)),
        ({"role": "embedder", "n_batch": 1000}, (1000, 1000)),
        ({"role": "embedder", "n_ubatch": 256}, (256, 2048)),
        ({}, (512, 2048)),
    ],
)
def test_an_embedders_physical_batch_holds_the_context_of_a_slot(
    keys: dict[str, Any], batches: tuple[int, int], tmp_path: Path
) -> None:
    """A long chunk is embedded by default; a batch that was written is honoured."""
    found = args_of(tmp_path, shape("bge-small", 8192), **keys)
    assert (found.n_ubatch, found.n_batch) == batches


def test_a_large_vocabulary_bounds_the_physical_batch(tmp_path: Path) -> None:
    """250,000 words and 4,096 tokens would be 4 GB of output rows; a key that was written is honoured."""
    large = replace(shape("bge-small", 8192), n_vocab=250_000)
    assert args_of(tmp_path, large, role="embedder").n_ubatch == 1024
    assert args_of(tmp_path, large, role="embedder", context=512).n_ubatch == 512
    assert args_of(tmp_path, large, role="embedder", n_ubatch=4096, n_batch=4096).n_ubatch == 4096
    huge = replace(large, n_vocab=2_000_000)
    assert args_of(tmp_path, huge, role="embedder").n_ubatch == 512


def test_an_embedder_that_reads_in_parts_keeps_the_usual_batch(tmp_path: Path) -> None:
    """A decoder whose last token is the vector needs no batch as large as its context."""
    found = args_of(tmp_path, shape("qwen3-0.6b", 8192, pooling_type=3), role="embedder")
    assert (found.n_ctx, found.n_ubatch) == (4096, 512)


def test_a_plan_does_not_take_a_written_context_for_one_that_follows_the_file(
    tmp_path: Path,
) -> None:
    """Their entries differ, because the same number means another size."""
    path = tmp_path / "m.gguf"
    left_out, written = entry_of(path), entry_of(path, context=4096)
    assert asked_of(left_out, HOST, ()).sizes == asked_of(written, HOST, ()).sizes
    assert asked_of(left_out, HOST, ()).key != asked_of(written, HOST, ()).key


@pytest.mark.real
def test_a_chunk_of_600_words_embeds_without_any_key(tiny_models: dict[str, Path]) -> None:
    """A real engine takes more tokens at once than llama.cpp's usual physical batch."""
    models = {"vec": {"path": str(tiny_models["embedder"]), "role": "embedder"}}
    with Shim({"budget": {"device": "host"}, "models": models}) as shim:
        found = shim.embed("vec", ["word " * 600])
        context = shim.describe("vec").context_per_slot
    assert found.usage.prompt_tokens > 512
    assert context is not None
    assert context > 600
