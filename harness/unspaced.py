"""Scripts that put no blanks between words: pairs of neighbouring characters stand for their words."""

from __future__ import annotations

import re
from typing import Final

UNSPACED: Final = re.compile(
    "["
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Kana
    "\uac00-\ud7a3"  # Hangul, whose particles follow a word without a blank
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece"  # Thai and Lao
    "\u1000-\u109f\u1780-\u17d3"  # Myanmar and Khmer
    "]+"
)


def pairs(run: str) -> list[str]:
    """Each character of a run with the one behind it; a run of one character is that one."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]
