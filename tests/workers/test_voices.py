"""The ready-made voice of Piper, over a runtime that only remembers what it is given."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.python.factories import voices


class Library:
    """espeak-ng, whose phonemes are the text itself."""

    def __init__(self, _voice: str) -> None:
        self.lock = threading.Lock()

    phonemes = staticmethod(str)


class Session:
    """A session of onnxruntime that answers a sample for each number."""

    def __init__(self, _model: str, options: Any, providers: list[str]) -> None:
        self.options, self.providers = options, providers
        self.given: list[int] = []

    def get_inputs(self) -> list[Any]:
        """A voice with one speaker has no `sid`."""
        return [SimpleNamespace(name=name) for name in ("input", "input_lengths", "scales")]

    def run(self, _outputs: None, given: dict[str, Any]) -> list[Any]:
        """What it is given at once is remembered."""
        assert "sid" not in given
        self.given.append(int(given["input_lengths"][0]))
        return [np.zeros((1, 1, given["input"].shape[1]), np.float32)]


@pytest.fixture
def piper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A voice whose phonemes are letters."""
    runtime = SimpleNamespace(
        SessionOptions=SimpleNamespace,
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_BASIC="basic"),
        InferenceSession=Session,
        get_available_providers=lambda: ["CPUExecutionProvider"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(voices, "_Library", Library)
    letters = {chr(n): [n] for n in range(97, 123)}
    voice = {
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.6, "length_scale": 1.0, "noise_w": 0.8},
        "phoneme_id_map": {"_": [0], "^": [1], "$": [2], **letters},
        "audio": {"sample_rate": 22050},
    }
    (tmp_path / "voice.onnx.json").write_text(json.dumps(voice), "utf-8")
    return voices.Piper(model=str(tmp_path / "voice.onnx"), threads=1)


def test_a_voice_gets_one_sentence_at_a_time(piper: Any) -> None:
    """What it takes is that of the longest sentence, and not of the whole text; no sample is lost."""
    said = piper(text="abc abc. abcdef! ab?  abc")
    assert piper._session.given == [15, 15, 7, 9]
    assert len(said["samples"]) == sum(piper._session.given)
    assert said["sample_rate"] == 22050


def test_a_text_without_a_word_is_spoken_as_silence(piper: Any) -> None:
    """Nothing fails, and a sign that the voice does not know is left out."""
    assert len(piper(text=" ")["samples"]) == len(piper(text="…")["samples"]) == 3


def test_a_voice_loads_without_what_makes_it_no_faster_and_keeps_no_bytes(piper: Any) -> None:
    """A load that follows an eviction is short, and what a long sentence took comes back."""
    options = piper._session.options
    assert options.graph_optimization_level == "basic"
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.intra_op_num_threads == 1
