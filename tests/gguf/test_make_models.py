"""The models that the demo and the engine tests run on: made once, the same bytes, and they work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from backends.gguf import read_header
from backends.llama.binaries import FOLDER_VARIABLE, build_id, find_binary, library_env
from backends.machine.children import serving
from backends.machine.unix_http import is_healthy
from budget.errors import ConfigError
from harness.demo.models import make_models

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models."""
    return make_models(tmp_path_factory.mktemp("models"), tiny=True)


@contextmanager
def _server(model: Path, folder: Path, *arguments: str) -> Iterator[httpx.Client]:
    binary = find_binary("llama-server")
    # A Unix socket's path is at most 107 bytes, and pytest's folders are long: a relative one.
    sock = os.path.relpath(folder / "s.sock")
    command = [str(binary), "-m", str(model), "--host", sock, "--fit", "off", "--no-warmup"]
    command += ["-c", "1024", "-np", "1", "-t", "1", "--cache-ram", "0", *arguments]
    env = os.environ | library_env(binary)
    with (
        serving(command, env, folder / "log", lambda: is_healthy(Path(sock))),
        httpx.Client(
            transport=httpx.HTTPTransport(uds=sock), base_url="http://engine", timeout=30
        ) as client,
    ):
        yield client


def test_a_second_run_makes_nothing(models: dict[str, Path]) -> None:
    """Files of the same recipe are left alone, and nothing else is left behind."""
    folder = models["producer"].parent
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lines: list[str] = []
    assert make_models(folder, tiny=True, progress=lines.append) == models
    assert lines == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(before) == 4


def test_a_damaged_model_is_made_again_with_the_same_bytes(models: dict[str, Path]) -> None:
    """A recipe is deterministic, through llama-quantize too."""
    path = models["classifier"]
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    lines: list[str] = []
    make_models(path.parent, tiny=True, progress=lines.append)
    assert path.read_bytes() == whole
    assert all(path.name in line for line in lines)


def test_their_tensors_are_what_their_names_say(models: dict[str, Path]) -> None:
    """Every demo quantization is there, and the evaluator meets a Q8_0 floor."""
    headers = {name: read_header(path) for name, path in models.items()}
    assert {name: header.quantization for name, header in headers.items()} == {
        "classifier": "Q4_K_M",
        "embedder": "F16",
        "producer": "Q4_0",
        "evaluator": "Q8_0",
    }
    assert headers["evaluator"].min_bits_per_weight == 8.5
    assert {name: header.shape().architecture for name, header in headers.items()} == {
        "classifier": "llama",
        "embedder": "nomic-bert",
        "producer": "qwen2",
        "evaluator": "llama",
    }
    assert headers["producer"].shape().tied_embeddings
    assert all(header.shape().context_length >= 4096 for header in headers.values())


@pytest.mark.parametrize("name", ["classifier", "producer", "evaluator"])
def test_llama_server_chats_until_the_token_limit(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The noise does not end early, and its tokens are counted."""
    with _server(models[name], tmp_path) as client:
        for seed in range(3):
            answer = client.post(
                "/v1/chat/completions",
                json={
                    "messages": [{"role": "user", "content": "Hello, what is this?"}],
                    "max_tokens": 48,
                    "seed": seed,
                },
            ).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 48
            assert 5 < answer["usage"]["prompt_tokens"] < 100
            assert answer["choices"][0]["message"]["content"].isascii()


def test_llama_server_embeds_with_the_embedder(models: dict[str, Path], tmp_path: Path) -> None:
    """Unit vectors of the model's width, different for different texts."""
    with _server(models["embedder"], tmp_path, "--embeddings") as client:
        answer = client.post("/v1/embeddings", json={"input": ["one text", "another"]}).json()
    first, second = (entry["embedding"] for entry in answer["data"])
    assert len(first) == len(second) == read_header(models["embedder"]).shape().n_embd
    assert first != second
    assert sum(x * x for x in first) == pytest.approx(1.0, abs=1e-3)


def test_a_missing_executable_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The named folder replaces every other place, so a mistake in it is not papered over."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="llama-server") as caught:
        find_binary("llama-server")
    assert caught.value.facts["searched"] == [str(tmp_path)]
    assert FOLDER_VARIABLE in caught.value.hint


def test_the_build_id_follows_the_files(tmp_path: Path) -> None:
    """Replacing a library changes the key under which measurements are cached."""
    binary = tmp_path / "bin" / "llama-server"
    library = tmp_path / "lib" / "libllama.so"
    for file in (binary, library):
        file.parent.mkdir()
        file.write_bytes(b"x")
    before = build_id(binary)
    assert before == build_id(binary)
    library.write_bytes(b"xy")
    assert build_id(binary) != before
    assert library_env(binary)["LD_LIBRARY_PATH"].startswith(str(library.parent))
    assert build_id(find_binary("llama-server")) != before
