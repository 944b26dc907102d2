"""What FTS5 is given of a text, and how it is asked: the same folding on both sides. Pure.

FTS5 splits a text at blanks and signs, and takes the endings of English words away (Porter). A run of
Chinese, Japanese, Korean, Thai, Lao, Khmer or Burmese would be one word to it, so such a run is indexed as
its pairs of neighbouring characters, and looked for by them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from harness.unspaced import UNSPACED, pairs

_MARKS: Final = "".join(
    chr(n) for n in range(0x300, 0xFE30) if unicodedata.category(chr(n)).startswith("M")
)
_WORD: Final = re.compile(rf"[\w{_MARKS}]+")
"""A word with its vowel signs, which Python does not count as letters (Hindi, Arabic)."""
_UNWRITTEN: Final = dict.fromkeys([0x640, 0x670, *range(0x64B, 0x660), *range(0x5B0, 0x5BD)])
"""Vowel points and the stroke that stretches words: Arabic and Hebrew are mostly written without."""


def indexed(text: str) -> str:
    """A text as FTS5 gets it: folded, and unspaced scripts as pairs.

    The last character of a run is also there by itself, so that every character begins a word of the
    index, by which a query of one character finds it.
    """
    return UNSPACED.sub(lambda run: _spaced(run.group()), _folded(text))


def words_of(text: str) -> list[str]:
    """The words of a question, each once, quoted so that no sign of a question is an operator of FTS5."""
    folded = _folded(text)
    unspaced = [pair for run in UNSPACED.findall(folded) for pair in pairs(run)]
    words = [f'"{pair}"' + "*" * (len(pair) == 1) for pair in unspaced]
    words += [f'"{word}"' for word in _WORD.findall(UNSPACED.sub(" ", folded))]
    return list(dict.fromkeys(words))


def _folded(text: str) -> str:
    """One spelling for full and half width, capital and small letters, with and without vowel points."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_UNWRITTEN)


def _spaced(run: str) -> str:
    return f" {' '.join([*pairs(run), run[-1]] if len(run) > 1 else [run])} "
