"""`factory = "espeak"` and `factory = "piper"`: text to speech, by rules and by a neural voice.

`espeak` speaks with espeak-ng. Options: `voice` (one of its names) and `speed` in words a minute. `piper`
runs a voice of Piper with onnxruntime, and has its phonemes from espeak-ng. Options: `model` (an `.onnx`
file with its `.onnx.json` beside it), `speed` (1.0 is the voice's own), `speaker` of a voice with several,
and `threads`. A call takes `text`; one of `espeak` takes `voice`, too. espeak-ng is the package
`espeakng-loader`, or the system's library.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import io
import json
import os
import re
import threading
import unicodedata
import wave
from pathlib import Path
from typing import Any

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_SYNCHRONOUS, _UTF8, _IPA, _RATE = 2, 1, 2, 1
_CLAUSES = re.compile(r"(?<=[.,;:!?])\s+")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class _Library:
    """espeak-ng. It has one voice at a time, so one thread uses it at a time."""

    def __init__(self, voice: str) -> None:
        path, data = self._place()
        self.lock = threading.Lock()
        self._lib = ctypes.CDLL(path)
        self.rate = int(self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data, 0))
        if self.rate < 0:
            raise RuntimeError("espeak-ng does not find its data")
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._pieces: list[bytes] = []
        self._heard = _CALLBACK(self._take)
        self._lib.espeak_SetSynthCallback(self._heard)
        self.use(voice)

    @staticmethod
    def _place() -> tuple[str, bytes | None]:
        try:
            loader = importlib.import_module("espeakng_loader")
        except ImportError:
            found = ctypes.util.find_library("espeak-ng")
            if found is None:
                raise ImportError("install espeakng-loader, or espeak-ng on the system") from None
            return found, None
        return loader.get_library_path(), os.fsencode(loader.get_data_path())

    def _take(self, samples: int | None, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def use(self, voice: str) -> None:
        """Change the voice."""
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")

    def hurry(self, speed: int) -> None:
        """Change the speed, in words a minute."""
        self._lib.espeak_SetParameter(_RATE, int(speed), 0)

    def speech(self, text: str) -> bytes:
        """The samples of a text, 16 bits each."""
        self._pieces.clear()
        raw = text.encode() + b"\0"
        self._lib.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, 0, 0, _UTF8, None, None)
        return b"".join(self._pieces)

    def phonemes(self, text: str) -> str:
        """Its phonemes, with the punctuation that ends each clause."""
        return " ".join(self._clause(clause) for clause in _CLAUSES.split(text.strip()))

    def _clause(self, clause: str) -> str:
        rest, found = ctypes.c_char_p(clause.encode()), []
        while rest.value:
            found.append(self._lib.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA) or b"")
        end = clause[-1] if clause.endswith((".", ",", ";", ":", "!", "?")) else ""
        return b" ".join(found).decode().strip() + end


class Espeak:
    """A voice of espeak-ng."""

    def __init__(self, voice: str = "en-us", speed: int = 175) -> None:
        self._voice, self._library = voice, _Library(voice)
        self._library.hurry(speed)

    def __call__(self, text: str, voice: str | None = None) -> dict[str, Any]:
        """`audio`, the bytes of a WAV file, and `sample_rate`."""
        with self._library.lock:
            self._library.use(voice or self._voice)
            samples = self._library.speech(text)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(self._library.rate)
            writer.writeframes(samples)
        return {"audio": file.getvalue(), "sample_rate": self._library.rate}


class Piper:
    """A neural voice of Piper."""

    def __init__(self, model: str, speed: float = 1.0, speaker: int = 0, threads: int = 0) -> None:
        runtime = importlib.import_module("onnxruntime")
        self._numpy = importlib.import_module("numpy")
        self._voice = json.loads(Path(f"{model}.json").read_text("utf-8"))
        self._library = _Library(self._voice["espeak"]["voice"])
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
        # What further levels fuse makes a voice no faster, and takes twice as long to load.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Both keep what the longest sentence took, for good; without them speech takes a tenth longer.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self._session = runtime.InferenceSession(
            model, options, providers=runtime.get_available_providers()
        )
        self._speed, self._speaker = speed, speaker

    def __call__(self, text: str) -> dict[str, Any]:
        """`samples`, floats from -1 to 1, and `sample_rate`."""
        # Sentence by sentence: what the model takes grows with what it is given at once.
        spoken = [self._spoken(sentence) for sentence in _SENTENCES.split(text.strip())]
        samples = self._numpy.concatenate(spoken)
        return {"samples": samples, "sample_rate": self._voice["audio"]["sample_rate"]}

    def _spoken(self, sentence: str) -> Any:
        with self._library.lock:
            phonemes = self._library.phonemes(sentence)
        numbers, how = self._numbers(phonemes), self._voice["inference"]
        scales = [how["noise_scale"], how["length_scale"] / self._speed, how["noise_w"]]
        given = {
            "input": self._numpy.array([numbers], self._numpy.int64),
            "input_lengths": self._numpy.array([len(numbers)], self._numpy.int64),
            "scales": self._numpy.array(scales, self._numpy.float32),
            "sid": self._numpy.array([self._speaker], self._numpy.int64),
        }
        wanted = {one.name for one in self._session.get_inputs()}
        given = {name: value for name, value in given.items() if name in wanted}
        return self._session.run(None, given)[0].reshape(-1)

    def _numbers(self, phonemes: str) -> list[int]:
        """The numbers of phonemes as Piper was trained: a pad after each, a mark at both ends."""
        known = self._voice["phoneme_id_map"]
        marks = [mark for mark in unicodedata.normalize("NFD", phonemes) if mark in known]
        spoken = [number for mark in marks for number in [*known[mark], *known["_"]]]
        return [*known["^"], *known["_"], *spoken, *known["$"]]
