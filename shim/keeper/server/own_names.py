"""Errors in the words of the client that they are for: its model by the name that the client calls it.

Models with the same settings share an engine, which names the first of them, and models of another project
have names of the keeper's. Neither is what a request asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from budget.errors import KeepwarmError, OutsideError, error_from_wire
from shim.keeper.catalog.catalog import Catalog

_FIRST: Final = r"^(?!(?:the|an?) \w+ of )"
"""Where a message begins with a model, unless its first words are "the server of"."""
_BEFORE: Final = (
    rf"(?:{_FIRST}|(?<=\bof )|(?<=\bfor )|(?<=[Mm]odel )|(?<=ing )|(?<=forget )|(?<=\[models\.))"
)
"""Where messages name a model. A name may be any word, which may stand elsewhere, too."""
_MADE: Final = re.compile(r"[@+]")
"""Names that the keeper makes have one of these; no other word has."""
_BEFORE_MADE: Final = r"(?:(?<=\[models\.)|(?<![\w@./:+-]))"


def in_own_names(error: KeepwarmError, catalog: Catalog, model: str, said: str) -> KeepwarmError:
    """The error of a request, with the name that it asked for.

    Args:
        error: what ended the request; it is left as it is, because other requests may get it.
        catalog: knows the other names of the model's engine.
        model: the keeper's name of the model.
        said: the client's name of it.
    """
    names = {model}
    prepared = catalog.prepared.get(model)
    engine = catalog.engines.get(prepared.engine_id) if prepared is not None else None
    if engine is not None and isinstance(error, OutsideError):
        names.update((*engine.names, engine.label))
    names.discard(said)
    return renamed(error, names, said) if names else error


def renamed(error: KeepwarmError, names: Collection[str], said: str) -> KeepwarmError:
    """A copy of an error with another name in place of these, but in the lines of a log that it quotes."""
    own = error_from_wire(error.to_wire())
    head, quotes, log = own.message.partition("\n  | ")
    own.message = _renamed(head, names, said) + quotes + log
    own.hint = _renamed(own.hint, names, said)
    if own.facts.get("model") in names:
        own.facts["model"] = said
    return own


def _renamed(text: str, names: Collection[str], said: str) -> str:
    for name in sorted(names, key=len, reverse=True):
        before = _BEFORE_MADE if _MADE.search(name) else _BEFORE
        pattern = rf"{before}{re.escape(name)}(?![\w@+-]|[./:]\w)"
        text = re.sub(pattern, lambda _: said, text)
    return text
