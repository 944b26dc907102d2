"""What each configured model can be asked for, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backends.kinds import KINDS, Verb
from budget.errors import InvalidRequest
from shim.config.schema.document import Config
from shim.config.schema.entry import ModelEntry

_EMBEDDER: Final = frozenset[Verb](["embed", "http"])
_READS_IMAGES: Final = KINDS["llama.cpp"].verbs - _EMBEDDER
_CHATS: Final = _READS_IMAGES - {"images"}
_WORDS: Final[Mapping[Verb, str]] = {
    "chat": "chat",
    "stream": "stream",
    "embed": "embed",
    "rerank": "rerank",
    "transcribe": "transcribe",
    "speak": "speak",
    "tokenize": "tokenize",
    "call": "take call()",
    "images": "read images",
    "http": "take http()",
}
"""What a model does not do, after "does not"."""


def verbs_of(entry: ModelEntry) -> frozenset[Verb]:
    """What a model can be asked for. An endpoint may do all that its kind does."""
    if entry.remote or entry.backend == "python":
        return KINDS[entry.backend].verbs
    if entry.backend == "server":
        # A server that chats can stream: that is one path of OpenAI's API.
        streams: list[Verb] = ["stream"] if "chat" in entry.can else []
        return frozenset[Verb](["http", *entry.can, *streams])
    if entry.role == "embedder":
        return _EMBEDDER
    if entry.backend == "vllm":
        return _READS_IMAGES
    return _READS_IMAGES if entry.mmproj else _CHATS


def models_that(config: Config, verb: Verb) -> list[str]:
    """The models of a configuration that can be asked for something."""
    return sorted(name for name, entry in config.models.items() if verb in verbs_of(entry))


def cannot(config: Config, model: str, verb: Verb) -> InvalidRequest:
    """The error of a model that is asked for what it does not do, with the models that do it."""
    can = " and ".join(sorted(_WORDS[able] for able in verbs_of(config.models[model])))
    others = models_that(config, verb)
    hint = f"Models of this configuration that do: {', '.join(others)}." if others else ""
    if verb == "embed" and not others and config.models[model].is_gguf:
        hint = 'Configure it with role = "embedder".'
    return InvalidRequest(
        f'{model} does not {_WORDS[verb]}; it can {can} (backend = "{config.models[model].backend}").',
        hint=hint or "No model of this configuration does.",
        model=model,
        models=list(others),
    )
