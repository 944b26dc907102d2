"""What each configured model can be asked for, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backends.kinds import KINDS, Verb
from backends.python.ready_made import ready_made_verbs
from budget.errors import InvalidRequest
from shim.config.schema.document import Config
from shim.config.schema.entry import ModelEntry

_OF_ROLE: Final[Mapping[str | None, frozenset[Verb]]] = {
    "embedder": frozenset(["embed", "tokenize", "http"]),
    "reranker": frozenset(["rerank", "tokenize", "http"]),
}
_READS_IMAGES: Final = KINDS["llama.cpp"].verbs - {"embed", "rerank", "transcribe", "speak"}
_CHATS: Final = _READS_IMAGES - {"images"}
_WORDS: Final[Mapping[Verb, str]] = {
    "call": "take call()",
    "images": "read images",
    "http": "take http()",
}
"""What a model does not do, after "does not", where that is not the verb itself."""
_ROLE_FOR: Final[Mapping[Verb, str]] = {"embed": "embedder", "rerank": "reranker"}
"""The role that a file has to be given to do it."""


def verbs_of(entry: ModelEntry) -> frozenset[Verb]:
    """What a model can be asked for. An endpoint may do all that its kind does."""
    if entry.remote:
        return KINDS[entry.backend].verbs
    if entry.backend == "server":
        # A server that chats can stream: that is one path of OpenAI's API.
        streams: list[Verb] = ["stream"] if "chat" in entry.can else []
        return frozenset[Verb](["http", *entry.can, *streams])
    if entry.backend == "python":
        ready = ready_made_verbs(entry.factory or "", entry.options)
        return frozenset[Verb](["call", *entry.can, *ready])
    if entry.backend == "llama-cpp-python":
        return KINDS[entry.backend].verbs & _OF_ROLE.get(entry.role, _CHATS)
    if (found := _OF_ROLE.get(entry.role)) is not None:
        return found
    if entry.backend == "vllm":
        return _READS_IMAGES
    return _READS_IMAGES if entry.mmproj else _CHATS


def models_that(config: Config, verb: Verb) -> list[str]:
    """The models of a configuration that can be asked for something."""
    return sorted(name for name, entry in config.models.items() if verb in verbs_of(entry))


def cannot(config: Config, model: str, verb: Verb) -> InvalidRequest:
    """The error of a model that is asked for what it does not do, with the models that do it."""
    entry = config.models[model]
    *some, last = sorted(_WORDS.get(able, able) for able in verbs_of(entry) if able != "stream")
    can = f"{', '.join(some)} and {last}" if some else last
    others = models_that(config, verb)
    hint = f"Models of this configuration that do: {', '.join(others)}." if others else ""
    role = _ROLE_FOR.get(verb)
    if role is not None and not others and entry.is_gguf and entry.role not in _OF_ROLE:
        hint = f'Configure it with role = "{role}".'
    return InvalidRequest(
        f'{model} does not {_WORDS.get(verb, verb)}; it can {can} (backend = "{entry.backend}").',
        hint=hint or "No model of this configuration does.",
        model=model,
        models=list(others),
    )
