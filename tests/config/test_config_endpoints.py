"""HARNESS_ENDPOINTS: endpoints from the environment over the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from budget.errors import ConfigError
from shim.config import Config, load_config

FILE = '[models.writer]\npath = "w.gguf"\nrole = "producer"\ncontext = 512\npriority = 3\n'
VLLM = {"url": "http://h:8000/v1", "model_id": "w7", "backend": "vllm"}


def load(folder: Path, endpoints: str, text: str = FILE) -> Config:
    """A file under an environment with HARNESS_ENDPOINTS."""
    (folder / "keepwarm.toml").write_text(text, encoding="utf-8")
    env = {"HOME": str(folder / "unknown"), "HARNESS_ENDPOINTS": endpoints}
    return load_config(env=env, cwd=folder)


def test_an_endpoint_takes_the_place_of_a_file(tmp_path: Path) -> None:
    """The model moves to vLLM with its role and priority; what was about its file is gone."""
    entry = load(tmp_path, json.dumps({"writer": VLLM})).models["writer"]
    assert entry.remote
    assert (entry.url, entry.model_id, entry.backend) == ("http://h:8000", "w7", "vllm")
    assert (entry.role, entry.priority, entry.path) == ("producer", 3, None)


def test_a_fallback_may_be_a_model_that_an_endpoint_replaces(tmp_path: Path) -> None:
    """The file was checked once without it, and the fallback was then called no model."""
    text = '[models.a]\npath = "a.gguf"\nfallback = "b"\n[models.b]\npath = "b.gguf"\n'
    config = load(tmp_path, '{"b": {"url": "http://far:1"}}', text)
    assert (config.models["a"].fallback, config.models["b"].url) == ("b", "http://far:1")


def test_endpoints_come_from_a_file_as_well(tmp_path: Path) -> None:
    """The variable may name a JSON file, relative to the working directory."""
    (tmp_path / "e.json").write_text(json.dumps({"writer": VLLM}), encoding="utf-8")
    assert load(tmp_path, "e.json").models["writer"].backend == "vllm"


def test_type_is_read_as_backend(tmp_path: Path) -> None:
    """`type` is accepted for `backend`; two that differ are a mistake."""
    entry = {"url": "http://h", "type": "openai"}
    assert load(tmp_path, json.dumps({"writer": entry})).models["writer"].backend == "openai"
    with pytest.raises(ConfigError, match=r"writer\.type"):
        load(tmp_path, json.dumps({"writer": {**entry, "backend": "vllm"}}))


def test_new_tags_are_added_and_others_stay(tmp_path: Path) -> None:
    """A tag that the file lacks is a model of its own, and its origin is the variable."""
    config = load(tmp_path, json.dumps({"other": VLLM}))
    assert set(config.models) == {"writer", "other"}
    assert not config.models["writer"].remote
    assert config.origin("models.other.url") == "HARNESS_ENDPOINTS"


def test_a_llama_server_elsewhere_can_be_an_endpoint(tmp_path: Path) -> None:
    """Backend llama.cpp with a url is a remote llama-server."""
    entry = {"url": "http://h:8080", "backend": "llama.cpp"}
    assert load(tmp_path, json.dumps({"writer": entry})).models["writer"].remote


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    """Unset and empty mean the same."""
    assert not load(tmp_path, " ").models["writer"].remote


@pytest.mark.parametrize(
    ("endpoints", "why"),
    [
        ("nowhere.json", "can be read .No such file"),
        ("{", r"not JSON: .* line 1"),
        ("[]", "found a list of 0"),
        ('{"writer": "http://h"}', "writer: found"),
        ({"writer": {"model_id": "x"}}, r"writer\.url: found nothing"),
        ({"writer": {**VLLM, "url": "h:80"}}, r"writer\.url"),
        ({"writer": {**VLLM, "backend": "tgi"}}, r"writer\.backend.*allowed: .*vllm"),
        ({"writer": {**VLLM, "urll": "x"}}, r'writer\.urll.*did you mean "url"'),
        ({"writer": {**VLLM, "model_id": 7}}, r"writer\.model_id: found a value that is not shown"),
        ({"a b": VLLM}, "the name"),
        ('{"writer": {"url": "http://h"}, "writer": {}}', "given twice"),
    ],
)
def test_mistakes_name_the_variable_and_the_key(
    tmp_path: Path, endpoints: str | dict[str, Any], why: str
) -> None:
    """Unreadable, misshapen, incomplete or unknown: a ConfigError that names HARNESS_ENDPOINTS."""
    text = endpoints if isinstance(endpoints, str) else json.dumps(endpoints)
    with pytest.raises(ConfigError, match=why) as caught:
        load(tmp_path, text)
    assert "HARNESS_ENDPOINTS" in caught.value.message


@pytest.mark.parametrize("around", ["{}", "'{}'", '"{}"', " '{}' ", "\ufeff{}"])
def test_quotes_that_an_env_file_keeps_are_no_part_of_the_value(
    tmp_path: Path, around: str
) -> None:
    """Docker's env files keep quotes, and some editors put a mark of the byte order in front."""
    given = around.format(json.dumps({"writer": VLLM}))
    assert load(tmp_path, given).models["writer"].backend == "vllm"
    (tmp_path / "e.json").write_text(json.dumps({"writer": VLLM}), encoding="utf-8-sig")
    assert load(tmp_path, around.format("e.json")).models["writer"].backend == "vllm"


def test_quotes_inside_quotes_are_understood_with_their_backslashes(tmp_path: Path) -> None:
    """As a shell's habit writes them into an env file, which takes nothing away."""
    assert load(tmp_path, json.dumps(json.dumps({"writer": VLLM}))).models["writer"].remote


KEY = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    "endpoints",
    [
        KEY,
        f"writer={KEY}",
        f"'{KEY}",
        f'"{KEY}"',
        f'["{KEY}"]',
        f'{{"writer": "{KEY}"}}',
        f'{{"writer": {{"url": "http://h", "api_key": "{KEY}"}}}}',
        f'{{"writer": {{"url": "http://h", "api_key_env": "{KEY}"}}}}',
        f'{{"writer": {{"url": "http://u:{KEY}@h"}}}}',
        f'{{"writer": {{"url": "http://h", "backend": "{KEY}"}}}}',
        f'{{"writer": {{"url": "http://h", "type": "{KEY}", "backend": "vllm"}}}}',
        f'{{"writer": {{"url": "http://h", "model_id": ["{KEY}"]}}}}',
        f'{{"writer": {{"url": "http://h"}}}} {KEY}',
        f"~{KEY}/endpoints",
        KEY * 30,
    ],
)
def test_no_error_shows_a_value_of_the_variable(tmp_path: Path, endpoints: str) -> None:
    """Any part of it may be a key, in a wrong place or by a slip of the hand."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, endpoints)
    assert KEY not in f"{caught.value} {caught.value.hint} {caught.value.facts}"


def test_a_mistake_in_the_file_is_reported_even_where_an_endpoint_covers_it(tmp_path: Path) -> None:
    """Moving a model to an endpoint hides nothing that is wrong in the file."""
    with pytest.raises(ConfigError, match=r"line 2: models\.writer\.contxt"):
        load(tmp_path, json.dumps({"writer": VLLM}), "[models.writer]\ncontxt = 1\npath = 'x'\n")
