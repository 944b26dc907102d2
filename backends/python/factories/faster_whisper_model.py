"""`factory = "faster-whisper"`: speech to text.

Options: `model` (a folder with the converted model, or a name that faster-whisper knows) and those of
`faster_whisper.WhisperModel`. A call takes `audio` (the bytes of an audio file, a path, or float32 samples
at 16 kHz) and the options of its `transcribe`.
"""

from __future__ import annotations

import importlib
import io
from typing import Any


class FasterWhisper:
    """A Whisper model by CTranslate2."""

    def __init__(self, model: str, **options: Any) -> None:
        self._model = importlib.import_module("faster_whisper").WhisperModel(model, **options)

    def __call__(self, audio: Any, **options: Any) -> dict[str, Any]:
        """The text, its language, and its segments with times in seconds."""
        given = io.BytesIO(audio) if isinstance(audio, bytes) else audio
        found, info = self._model.transcribe(given, **options)
        # The work is done here, while the segments are iterated over.
        segments = [{"start": s.start, "end": s.end, "text": s.text.strip()} for s in found]
        return {
            "text": " ".join(segment["text"] for segment in segments),
            "language": info.language,
            "duration_s": info.duration,
            "segments": segments,
        }
