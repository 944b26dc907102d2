"""The factories that come with keepwarm, by the name that a configuration gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from backends.kinds import Verb

_FOLDER: Final = Path(__file__).with_name("factories")

READY_MADE: Final[Mapping[str, tuple[Path, str]]] = {
    "faster-whisper": (_FOLDER / "faster_whisper_model.py", "FasterWhisper"),
    "sentence-transformers": (_FOLDER / "sentence_transformers_model.py", "SentenceTransformers"),
    "transformers": (_FOLDER / "transformers_pipeline.py", "TransformersPipeline"),
    "espeak": (_FOLDER / "voices.py", "Espeak"),
    "piper": (_FOLDER / "voices.py", "Piper"),
}
"""The file and the class of each; it is loaded by itself, in the interpreter of the model that names it."""


def ready_made_verbs(factory: str, options: Mapping[str, Any]) -> frozenset[Verb]:
    """What the models of a ready-made factory do beside being called."""
    if factory == "faster-whisper":
        return frozenset(["transcribe"])
    if factory in ("espeak", "piper"):
        return frozenset(["speak"])
    if factory == "sentence-transformers" and options.get("kind") == "reranker":
        return frozenset(["rerank"])
    return frozenset()
