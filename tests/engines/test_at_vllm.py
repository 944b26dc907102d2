"""A program that moves to vLLM and back by one line of its configuration, and what its errors become."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from budget.errors import (
    EndpointError,
    InvalidRequest,
    UnknownModel,
)
from shim import Reply, Shim
from shim.config import load_config
from tests.engines.far_servers import FarServer
from tools.vllm_server import NAME
from traces import RunLine, RunTrace, read_runs

pytestmark = pytest.mark.vllm

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"enum": [True, False]}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture
def far(far_vllm: FarServer) -> Iterator[Shim]:
    """A shim whose only model is at vLLM."""
    url = far_vllm.endpoint().base_url
    with Shim({"models": {NAME: {"url": url, "backend": "vllm"}}}) as shim:
        yield shim


def produced(config: Path) -> list[Reply]:
    """What the program asks of its producer: the same calls, wherever the model is."""
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "seed": 3}
    with Shim(load_config(config), inline=True) as shim:
        full = shim.chat("producer", "Say hello.", **options)
        with shim.stream("producer", "Say hello.", **options) as stream:
            text = "".join(piece.content for piece in stream)
        shaped = shim.chat("producer", "Is it?", json_schema=SCHEMA, max_tokens=40)
        assert text == full.content
        assert json.loads(shaped.content)["ok"] in {True, False}
        return [full, stream.reply, shaped]


def test_one_line_moves_a_producer_to_vllm_and_back(
    far_vllm: FarServer, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing else of the program or its configuration changes, and the replies have the same fields."""
    here = f'producer = {{ path = "{tiny_models["producer"]}", role = "producer" }}'
    there = (
        f'producer = {{ url = "{far_vllm.endpoint().base_url}", backend = "vllm",'
        f' model_id = "{NAME}", role = "producer" }}'
    )
    config = tmp_path / "keepwarm.toml"
    engines = []
    for line in (here, there, here):
        config.write_text(f'[budget]\ndevice = "host"\nlimit = "1GiB"\n\n[models]\n{line}\n')
        replies = produced(config)
        assert all(reply.model == "producer" for reply in replies)
        assert all(reply.usage.completion_tokens > 0 for reply in replies)
        assert replies[1].ttft_s is not None
        engines.append(replies[0].content)
    assert engines[0] == engines[2]


def test_an_environment_moves_a_producer_to_vllm(
    far_vllm: FarServer,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`HARNESS_ENDPOINTS` needs no change of any file."""
    config = tmp_path / "keepwarm.toml"
    config.write_text(f'[models.producer]\npath = "{tiny_models["producer"]}"\n')
    endpoint = {"url": far_vllm.endpoint().base_url, "backend": "vllm", "model_id": NAME}
    monkeypatch.setenv("HARNESS_ENDPOINTS", json.dumps({"producer": endpoint}))
    assert all(reply.usage.completion_tokens for reply in produced(config))


def test_requests_at_the_same_time_overlap_on_the_trace(far: Shim, tmp_path: Path) -> None:
    """Continuous batching is seen: each of eight requests begins before any has ended."""

    async def ask() -> list[Reply]:
        calls = (far.achat(NAME, f"{n}: go on.", max_tokens=40) for n in range(8))
        return await asyncio.gather(*calls)

    with RunTrace(directory=tmp_path) as run:
        asyncio.run(ask())
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    begun = [request.arrival_s for request in line.requests]
    ended = [request.arrival_s + request.total_s for request in line.requests]
    assert len(line.requests) == 8
    assert max(begun) < min(ended)


def test_max_tokens_beyond_the_context_are_refused_with_vllms_words(far: Shim) -> None:
    """It is the request's fault, and no prompt that is too long."""
    with pytest.raises(InvalidRequest, match="max_tokens=5000") as caught:
        far.chat(NAME, "hello", max_tokens=5000)
    assert caught.value.facts["param"] == "max_tokens"


def test_an_unknown_model_names_the_model_id(far_vllm: FarServer) -> None:
    """The error says what to check in the configuration."""
    entry = {"url": far_vllm.endpoint().base_url, "backend": "vllm", "model_id": "absent"}
    with Shim({"models": {"x": entry}}) as shim, pytest.raises(UnknownModel) as caught:
        shim.chat("x", "hello")
    assert "absent" in str(caught.value)


def test_a_wrong_path_says_what_was_asked(far_vllm: FarServer) -> None:
    """A url with a path too much is a 404 `{"detail": ...}`, which no model is to blame for."""
    url = f"{far_vllm.endpoint().base_url}/api"
    with (
        Shim({"models": {NAME: {"url": url, "backend": "vllm"}}}) as shim,
        pytest.raises(EndpointError) as caught,
    ):
        shim.chat(NAME, "hello")
    assert "/api/v1/chat/completions" in str(caught.value)


def test_vectors_of_a_model_that_generates_are_refused_by_name(far: Shim) -> None:
    """There is no route for them at such a server: the error names the model and says how one is served."""
    with pytest.raises(InvalidRequest, match=f"{NAME} at .* does not embed"):
        far.embed(NAME, ["a text"])
