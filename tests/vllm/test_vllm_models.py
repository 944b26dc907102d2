"""Models with `backend = "vllm"` and a folder: their keys, and the bytes that are booked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.footprint.inspect import Inspector
from budget.errors import ConfigError
from budget.footprint import HOST
from harness import Roles
from shim import Shim
from shim.config import Config
from shim.config.verbs import verbs_of
from shim.keeper.catalog.catalog import build_catalog
from shim.keeper.catalog.entries import Prepared
from shim.keeper.catalog.preparing import prepare
from shim.keeper.catalog.vllm_models import BLOCK_TOKENS, PROCESSES_BYTES
from shim.placement.budgeted_devices import budget_devices
from tests.vllm.support import WEIGHTS, folder_of

PER_TOKEN = 4 * 2 * 2 * 64 * 2


def prepared(folder: Path, **keys: Any) -> Prepared:
    """A model of vLLM on the host, as the keeper's catalog has it."""
    model = {"backend": "vllm", "path": str(folder), "context": 1024, **keys}
    config = Config.from_mapping({"budget": {"device": "host"}, "models": {"answers": model}})
    return prepare("answers", config.models["answers"], budget_devices(config), Inspector())


def test_weights_cache_and_an_allowance_are_booked(tmp_path: Path) -> None:
    """The cache holds the context of every slot in whole blocks, and the block that vLLM keeps empty."""
    (placement,) = prepared(folder_of(tmp_path), slots=4).placements
    part = placement.footprints[HOST]
    assert part.weights_bytes == WEIGHTS
    assert part.kv_bytes == (4 * 2 + 1) * BLOCK_TOKENS * PER_TOKEN
    assert part.compute_bytes == PROCESSES_BYTES
    assert placement.args.context_per_slot == 256
    assert placement.source == "files"


def test_declared_bytes_are_its_share_and_the_rest_is_cache(tmp_path: Path) -> None:
    """What the weights and the processes do not take goes to the KV cache."""
    (placement,) = prepared(folder_of(tmp_path), bytes="3GiB").placements
    assert placement.total_bytes == 3 << 30
    assert placement.footprints[HOST].kv_bytes == (3 << 30) - WEIGHTS - PROCESSES_BYTES
    assert placement.source == "declared"


def test_too_few_bytes_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    """VLLM would say it only after it has loaded the weights."""
    with pytest.raises(ConfigError, match=f"weights are {WEIGHTS} bytes") as caught:
        prepared(folder_of(tmp_path), bytes="1GiB")
    assert "or more" in caught.value.hint


def test_more_context_than_the_model_was_trained_for_is_refused(tmp_path: Path) -> None:
    """As for a GGUF file; left out, it follows the model."""
    with pytest.raises(ConfigError, match="trained for 4096"):
        prepared(folder_of(tmp_path), context=9000)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"kv_type": "q8_0"}, 'backend = "vllm", which has no such key'),
        ({"factory": "a:B"}, 'backend = "vllm", which has no such key'),
        ({"engine_args": ["--port", "80"]}, "--port"),
        ({"engine_args": ["--gpu-memory-utilization=0.9"]}, "which keepwarm decides for vLLM"),
        ({"sleep": 3}, "0, 1 or 2"),
    ],
)
def test_keys_that_do_not_hold_for_vllm_are_refused(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    """Each by its name, with what is allowed."""
    with pytest.raises(ConfigError) as caught:
        prepared(folder_of(tmp_path), **keys)
    assert told in str(caught.value)


def test_the_role_decides_what_a_server_is_asked_for(tmp_path: Path) -> None:
    """A server generates or pools; a request for the other is refused before anything is loaded."""
    folder = folder_of(tmp_path)
    generates, pools = prepared(folder).entry, prepared(folder, role="embedder").entry
    assert "embed" not in verbs_of(generates)
    assert "embed" in verbs_of(pools)
    assert "chat" not in verbs_of(pools)


def test_an_evaluator_of_a_folder_is_served_and_pinned_though_its_precision_is_unread(
    tmp_path: Path,
) -> None:
    """It was refused as one of 0 bits; harness and record say that it is unchecked."""
    folders = {name: folder_of(tmp_path / name) for name in ("judge", "writer")}
    models: dict[str, Any] = {
        name: {"backend": "vllm", "path": str(path), "context": 512}
        for name, path in folders.items()
    }
    models["judge"]["role"], models["writer"]["role"] = "evaluator", "producer"
    config = {"budget": {"device": "host", "limit": "16GiB"}, "models": models}
    catalog = build_catalog(Config.from_mapping(config))
    assert catalog.errors == {}
    assert [model.name for model in catalog.models() if model.pinned] == ["judge"]
    with Shim(config) as shim:
        assert Roles.of(shim).unverified == ("judge",)
