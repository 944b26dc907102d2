"""Fields that we add to a request beside what its caller asked for, where an endpoint refuses them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from backends.base import Endpoint
from budget.errors import InvalidRequest

OURS: Final = frozenset({"stream_options", "encoding_format", "return_progress"})
"""They bring figures and a shape; an answer without them is the same answer."""
_OLD_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_STRICT: Final = frozenset({400, 422})


class RefusedExtras:
    """Our own fields that each endpoint refuses, known from its first answer of status 400 or 422.

    An error that names a field is about that one; any other may be about all of them, as long as the
    endpoint has never taken them. Newer endpoints want `max_completion_tokens` for `max_tokens`.
    """

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str], frozenset[str]] = {}
        self._taken: set[tuple[str, str, str]] = set()

    def applied(self, endpoint: Endpoint, body: bytes) -> bytes:
        """The body as the endpoint takes it, by what is known of it."""
        refused = self._refused.get((endpoint.base_url, endpoint.model_id))
        return body if refused is None else without(body, refused)

    def answered(self, endpoint: Endpoint, body: bytes, left_out: frozenset[str]) -> None:
        """The endpoint answered this request well, once these fields were left out."""
        where = (endpoint.base_url, endpoint.model_id)
        if left_out:
            self._refused[where] = self._refused.get(where, frozenset()) | left_out
        for name in OURS:
            if (*where, name) not in self._taken and f'"{name}":'.encode() in body:
                self._taken.add((*where, name))

    def suspects(self, endpoint: Endpoint, body: bytes, error: InvalidRequest) -> frozenset[str]:
        """The fields of a refused request that may be the cause, so that it is sent again without them."""
        if endpoint.is_known or error.facts.get("status") not in _STRICT:
            return frozenset()
        fields: dict[str, Any] = json.loads(body)
        said = f"{error.message} {error.facts.get('param')}"
        if _NEW_LIMIT in said and _OLD_LIMIT in fields:
            return frozenset({_OLD_LIMIT})
        ours = OURS & fields.keys()
        named = frozenset(name for name in ours if name in said)
        where = (endpoint.base_url, endpoint.model_id)
        return named or frozenset(name for name in ours if (*where, name) not in self._taken)


def without(body: bytes, names: Iterable[str]) -> bytes:
    """The body without these fields; an old name of a limit becomes the new one."""
    fields: dict[str, Any] = json.loads(body)
    for name in names:
        value = fields.pop(name, None)
        if name == _OLD_LIMIT and value is not None:
            fields[_NEW_LIMIT] = value
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
