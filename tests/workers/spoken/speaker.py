"""A user's module: speech by espeak-ng, in pieces as they are made. It runs in `.venv-python-models`."""

from __future__ import annotations

import ctypes
import importlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
_SYNCHRONOUS, _UTF8 = 2, 1


class Speaker:
    """One voice; a call is a generator of samples, float32 at `rate`."""

    def __init__(self, voice: str = "en-us") -> None:
        found = importlib.import_module("espeakng_loader")
        self._numpy = importlib.import_module("numpy")
        self._lib = ctypes.CDLL(found.get_library_path())
        self.rate = self._lib.espeak_Initialize(
            _SYNCHRONOUS, 200, found.get_data_path().encode(), 0
        )
        self._lib.espeak_SetVoiceByName(voice.encode())
        self._pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._heard = _CALLBACK(self._take)
        self._lib.espeak_SetSynthCallback(self._heard)

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count:
            piece = self._numpy.ctypeslib.as_array(samples, (count,))
            self._pieces.put(piece.astype(self._numpy.float32) / 32768)
        return 0

    def __call__(self, text: str) -> Iterator[dict[str, Any]]:
        """The speech, piece by piece."""
        raw = text.encode() + b"\0"

        def speak() -> None:
            self._lib.espeak_Synth(raw, len(raw), 0, 0, 0, _UTF8, None, None)
            self._pieces.put(None)

        threading.Thread(target=speak).start()
        while (piece := self._pieces.get()) is not None:
            yield {"samples": piece, "rate": self.rate}
