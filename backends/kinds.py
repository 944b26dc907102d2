"""The kinds of engines: what runs a model, and what each kind can be asked for.

A model's configuration names its kind (`backend = "..."`). The verbs here are what a kind can do at all;
`shim.config.verbs` says what one configured model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Backend = Literal["llama.cpp", "llama-cpp-python", "python", "vllm", "server", "ollama", "openai"]
Verb = Literal[
    "chat", "stream", "embed", "rerank", "transcribe", "speak", "tokenize", "call", "images", "http"
]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind of engine.

    Attributes:
        what: what runs the model, in words.
        verbs: what a model of this kind can be asked for, depending on its file or its program.
        here: whether keepwarm can start it, so that its bytes are booked.
    """

    what: str
    verbs: frozenset[Verb]
    here: bool


SERVED: Final = frozenset[Verb](
    ["chat", "stream", "embed", "images", "rerank", "tokenize", "transcribe", "speak", "http"]
)
"""What a server of OpenAI's API may do."""
_NO_AUDIO: Final = SERVED - {"transcribe", "speak"}
_BY_BINDING: Final = frozenset[Verb](["chat", "stream", "embed", "tokenize", "http"])
_OLLAMA: Final = frozenset[Verb](["chat", "stream", "embed", "images", "http"])
CALLABLE: Final = frozenset[Verb](["call", "rerank", "tokenize", "transcribe", "speak"])
"""What a Python model may do."""

KINDS: Final[Mapping[Backend, EngineKind]] = {
    "llama.cpp": EngineKind("llama-server, from a GGUF file", _NO_AUDIO, here=True),
    "llama-cpp-python": EngineKind(
        "a worker over llama-cpp-python, from a GGUF file", _BY_BINDING, here=True
    ),
    "python": EngineKind("your own Python code, in a worker process", CALLABLE, here=True),
    "vllm": EngineKind("a vLLM server, from a model folder or elsewhere", SERVED, here=True),
    "server": EngineKind("any program that answers over HTTP", SERVED, here=True),
    "ollama": EngineKind("Ollama, by its own API", _OLLAMA, here=False),
    "openai": EngineKind("an endpoint that speaks OpenAI's API", SERVED, here=False),
}
"""Every kind by its name in the configuration."""

LLAMA: Final = frozenset[Backend](["llama.cpp", "llama-cpp-python"])
"""The kinds in which llama.cpp runs a GGUF file."""
