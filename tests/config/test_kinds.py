"""Kinds of engines: which keys hold for which, what each model can be asked for, and the page about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.kinds import KINDS
from shim import Config, ConfigError
from shim.config.schema.entry import ModelEntry
from shim.config.schema.kind_keys import every_key
from shim.config.verbs import models_that, verbs_of


def entry(base: Path | None = None, **keys: Any) -> ModelEntry:
    """One model with these keys."""
    return Config.from_mapping({"models": {"m": keys}}, base=base).models["m"]


def refused(**keys: Any) -> str:
    """Why a model with these keys is a mistake."""
    with pytest.raises(ConfigError) as caught:
        entry(**keys)
    return str(caught.value)


def test_every_key_holds_for_some_kind() -> None:
    """A key that is added is put on the list of its kind."""
    assert every_key() == set(ModelEntry.model_fields)


def test_a_factory_makes_it_a_python_model_beside_its_file(tmp_path: Path) -> None:
    """Paths start at the file's folder, which is also where the module is looked for; links are kept."""
    python = tmp_path / "python"
    python.symlink_to("/usr/bin/env")
    found = entry(
        tmp_path, factory="speech:Transcriber", bytes="600MiB", files="w", python="python"
    )
    assert found.backend == "python"
    assert found.cwd == tmp_path
    assert found.files == (tmp_path / "w",)
    assert found.python == str(python)
    assert found.bytes is not None
    assert found.bytes.fixed_bytes == 600 << 20
    config = Config.from_mapping({"models": {"m": {"factory": "a:B", "options": {"x": [1]}}}})
    assert Config.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"backend": "ollamma", "path": "x"},
            '"llama.cpp", "llama-cpp-python", "python", "vllm", "server", "ollama" or "openai"',
        ),
        ({"backend": "python"}, 'backend = "python" without a factory'),
        ({"factory": "a:B", "path": "x.gguf"}, 'it is for backend = "llama.cpp"'),
        ({"factory": "a:B", "role": "evaluator"}, 'models.m.role: found backend = "python"'),
        ({"factory": "a:B", "context": 4}, 'models.m.context: found backend = "python"'),
        ({"factory": "a:B", "url": "http://h"}, "models.m.factory: found the model is remote"),
        ({"path": "x.gguf", "bytes": "1GiB"}, 'this key is for backend = "python"'),
        ({"url": "http://h", "files": ["x"]}, "models.m.files: found the model is remote"),
        ({"factory": "speech.py"}, "neither module:Name nor a factory"),
        ({"factory": "a b:C"}, "neither module:Name nor a factory"),
        ({"factory": "whisper"}, "one of faster-whisper, sentence-transformers, transformers"),
        ({"factory": "a:B", "can": ["chat"]}, "chat, which no Python model does"),
        ({"factory": "a:B", "can": ["sing"]}, "'sing'"),
        ({"factory": "a:B", "bytes": 0}, "above zero"),
        ({"factory": "a:B", "bytes": "80%"}, "a percentage"),
        ({"factory": "a:B", "options": {"x": object()}}, "JSON cannot carry"),
        ({"factory": "a:B", "env": {"A=B": "x"}}, "no environment variable"),
        ({"factory": "a:B", "env": {"A": 1}}, "A is not a text"),
        ({"factory": "a:B", "device": "gpu"}, '"auto", "host" or "cuda:N"'),
    ],
)
def test_a_key_of_another_kind_and_a_wrong_value_are_refused_by_name(
    keys: dict[str, Any], words: str
) -> None:
    """The message says the kind, and what is allowed."""
    assert words in refused(**keys)


def test_what_a_model_can_be_asked_for_follows_from_its_keys(tmp_path: Path) -> None:
    """Known before anything is loaded."""
    models = {
        "chats": {"path": "x.gguf"},
        "sees": {"path": "x.gguf", "mmproj": "y.gguf"},
        "embeds": {"path": "x.gguf", "role": "embedder"},
        "ranks": {"path": "x.gguf", "role": "reranker"},
        "code": {"factory": "a:B"},
        "speaks": {"factory": "a:B", "can": "speak"},
        "hears": {"factory": "faster-whisper"},
        "reads": {"factory": "piper", "options": {"model": "x.onnx"}},
        "far": {"url": "http://h"},
    }
    config = Config.from_mapping({"models": models}, base=tmp_path)
    assert models_that(config, "chat") == ["chats", "far", "sees"]
    assert models_that(config, "images") == ["far", "sees"]
    assert models_that(config, "embed") == ["embeds", "far"]
    assert models_that(config, "call") == ["code", "hears", "reads", "speaks"]
    assert models_that(config, "rerank") == ["far", "ranks"]
    assert models_that(config, "speak") == ["far", "reads", "speaks"]
    assert models_that(config, "transcribe") == ["far", "hears"]
    assert "ranks" in models_that(config, "tokenize")


def test_verbs_are_those_of_the_kind() -> None:
    """No model does what its kind cannot."""
    kinds: list[dict[str, Any]] = [
        {"path": "x"},
        {"path": "x", "role": "embedder"},
        {"factory": "a:B"},
        {"command": ["a", "{port}"], "can": ["chat"]},
    ]
    for keys in kinds:
        found = entry(**keys)
        assert verbs_of(found) <= KINDS[found.backend].verbs
