"""What the configuration promises of a model, seen on real llama-server engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from shim import Config, Reply, Shim
from shim.config import load_config
from tests.engines.support import listening
from tests.processes import wait_until

pytestmark = pytest.mark.real

RUBRIC = "You are a strict judge. " + "Give marks for clarity, truth, brevity and tone. " * 20


def ask(shim: Shim, model: str, system: str = "") -> Reply:
    """A short chat."""
    messages = [{"role": "system", "content": system}] if system else []
    return shim.chat(model, [*messages, {"role": "user", "content": "Hello."}], max_tokens=2)


def states(shim: Shim) -> dict[str, str]:
    """The residency of every engine, by its first model's name."""
    return {row["models"][0]: row["state"] for row in shim.status()["engines"]}


def test_an_evaluator_is_warm_before_its_first_request_and_stays(
    tiny_models: dict[str, Path],
) -> None:
    """Pinned by its role: loaded when the keeper starts, spared by every eviction."""
    config = {
        "budget": {"device": "host", "limit": "50MB"},
        "models": {
            "judge": {"path": str(tiny_models["evaluator"]), "role": "evaluator", "context": 1024},
            "a": {"path": str(tiny_models["classifier"]), "context": 1024},
            "b": {"path": str(tiny_models["producer"]), "context": 1024},
        },
    }
    with Shim(config) as shim:
        assert wait_until(lambda: states(shim)["judge"] == "idle")
        for name in ("a", "b", "a"):
            assert ask(shim, name).residency.cold, "only one of the two fits beside the judge"
        assert not ask(shim, "judge").residency.cold
        record = shim.status()["decisions"][-1]
        assert record["victims"]
        assert not any("judge" in victim for victim in record["victims"])


def test_keep_alive_zero_leaves_at_once_and_a_twin_keeps_the_engine(
    tiny_models: dict[str, Path],
) -> None:
    """Two names on one file share an engine and its longest keep_alive."""
    entry = {"path": str(tiny_models["classifier"]), "context": 1024}
    config: dict[str, Any] = {
        "budget": {"device": "host"},
        "models": {
            "short": {**entry, "path": str(tiny_models["producer"]), "keep_alive": 0},
            "left": {**entry, "keep_alive": 0},
            "right": {**entry, "keep_alive": 60},
        },
    }
    with Shim(config) as shim:
        ask(shim, "short")
        assert wait_until(lambda: states(shim)["short"] == "absent")
        assert ask(shim, "left").residency.cold
        assert not ask(shim, "right").residency.cold
        assert states(shim)["left"] == "idle"
        assert len(shim.status()["engines"]) == 2


def test_a_warm_prompt_is_evaluated_before_the_first_request(tiny_models: dict[str, Path]) -> None:
    """The first request that begins with it evaluates only what comes after."""
    config = {
        "budget": {"device": "host"},
        "models": {
            "judge": {
                "path": str(tiny_models["evaluator"]),
                "context": 2048,
                "warm_prompt": RUBRIC,
            },
            "plain": {"path": str(tiny_models["evaluator"]), "context": 2048},
        },
    }
    with Shim(config) as shim:
        warmed, plain = ask(shim, "judge", RUBRIC), ask(shim, "plain", RUBRIC)
    assert warmed.timings is not None
    assert plain.timings is not None
    assert plain.timings.cache_n == 0
    assert warmed.timings.cache_n > 0.8 * plain.timings.prompt_n


@pytest.fixture
def far_server(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    """A llama-server that keepwarm does not run, on a loopback port; its URL."""
    binary = find_binary("llama-server")
    command = [str(binary), "-m", str(tiny_models["classifier"]), "--host", "127.0.0.1"]
    command += ["--port", "0", "-c", "512"]
    log = tmp_path / "far.log"
    with serving(command, library_env(binary), log, lambda: bool(listening(log))):
        yield listening(log)


def test_one_line_moves_a_model_to_an_endpoint(
    tiny_models: dict[str, Path], far_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call goes to a managed engine, or past the budget to the endpoint."""
    file = tmp_path / "keepwarm.toml"
    file.write_text(
        f'[budget]\ndevice = "host"\n[models.a]\npath = "{tiny_models["classifier"]}"\ncontext = 512\n'
    )

    def served(config: Config) -> tuple[str, int]:
        with Shim(config, inline=True) as shim:
            reply = ask(shim, "a")
            return reply.residency.engine, reply.usage.completion_tokens

    engine, tokens = served(load_config(file))
    assert engine.startswith("tiny-classifier")
    assert tokens == 2
    endpoints = {"a": {"url": far_server, "model_id": "anything", "type": "openai"}}
    monkeypatch.setenv("HARNESS_ENDPOINTS", json.dumps(endpoints))
    assert served(load_config(file)) == ("", 2)
