"""What a memory holds and finds."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from harness.given import a_number, a_table, a_text, refused
from shim import InvalidRequest

LONGEST: Final = 1_000_000
"""Characters of the longest passage."""
_SIGNS: Final = (
    ".,:;!?\"'()[]{}\u00ab\u00bb\u2018\u2019\u201a\u201c\u201d\u201e\u2026"
    "\u060c\u061b\u061f\u06d4\u3001\u3002\u300c\u300d"  # Arabic, Chinese and Japanese
)
"""Those around a word that say nothing by themselves. A minus or a currency does."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to remember. `quality` weighs its score; `metadata` is JSON, by which a search can filter.

    Raises:
        InvalidRequest: the text is empty or too long, the quality not a positive number, or the metadata
            not a JSON object.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    quality: float = 1.0

    def __post_init__(self) -> None:
        if not a_text("The text of a passage", self.text).strip() or len(self.text) > LONGEST:
            raise InvalidRequest(
                f"A passage of {len(self.text):,} characters cannot be kept.",
                hint=f"Give a text of 1 to {LONGEST:,} characters.",
                characters=len(self.text),
            )
        check_text(self.text)
        if a_number("The quality of a passage", self.quality, 0) == 0:
            raise refused("The quality of a passage", self.quality, "a number above 0; 1 is usual")
        self.metadata_text()

    @property
    def digest(self) -> bytes:
        """The hash by which the same text is known again; white space at its ends does not count."""
        return hashlib.sha256(self.text.strip().encode("utf-8", "surrogatepass")).digest()

    def metadata_text(self) -> str:
        """The metadata as JSON.

        Raises:
            InvalidRequest: it is not a JSON object.
        """
        found = dict(a_table("The metadata of a passage", self.metadata))
        try:
            return json.dumps(found, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"The metadata is not JSON: {error}.") from error


def same_words(one: str | None, other: str) -> bool:
    """Whether two texts say the same, but for capitals, white space, and the signs around their words."""
    return one is not None and _words(one) == _words(other)


def _words(text: str) -> list[str]:
    found = (word.strip(_SIGNS) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return [word for word in found if word]


def check_text(text: str) -> None:
    """Refuse a text that no file can hold: half of a character, as broken JSON escapes make it.

    Raises:
        InvalidRequest: with the place of the half.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The text has half of a character at {error.start}, which cannot be kept or looked for.",
            hint='Replace it: text.encode("utf-8", "replace").decode().',
            position=error.start,
        ) from error


@dataclass(frozen=True, slots=True)
class Hit:
    """A found passage. `score` is comparable within one search only."""

    id: int
    text: str
    score: float
    metadata: Mapping[str, Any]
    quality: float


@dataclass(frozen=True, slots=True)
class Found:
    """The hits of a search, the best first. `degraded` says why words alone were compared, if they were."""

    hits: tuple[Hit, ...]
    degraded: str = ""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """How many passages got their vector, and how many were dropped as near copies of others.

    `waiting` have none yet; `degraded` says why.
    """

    embedded: int = 0
    dropped: int = 0
    waiting: int = 0
    degraded: str = ""
