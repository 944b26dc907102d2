"""Limits on the size of one model's headers, whatever the size of its files.

No real model comes near these numbers: the largest vocabularies have 300,000 tokens and 600,000
merges in 20 MiB of header, the largest models 2,000 tensors and 60 keys. A file that asks for more is
refused with the number found and the number allowed, so that a hostile one of any size costs a second
at most, and 64 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_HEADER_BYTES: Final = 128 << 20
"""From the start of the file to the end of its tensor table; over all files of a model."""
MAX_KEYS: Final = 1 << 13
MAX_TENSORS: Final = 1 << 15
MAX_SHARDS: Final = 1000
MAX_KEY_BYTES: Final = (1 << 16) - 1
"""The format's own bound (docs/gguf.md in ggml)."""

MAX_TEXTS: Final = 1 << 21
"""Elements of arrays of texts. Each has to be skipped to find the next."""

MAX_KEPT_TEXT_BYTES: Final = 1 << 20
"""A longer text is stepped over: a whole `tokenizer.json` may be one, and nothing here reads it."""
MAX_KEPT_BYTES: Final = 8 << 20
"""Keys and kept texts together."""
MAX_KEPT_NUMBERS: Final = 1 << 10
"""In one array, and `MAX_KEPT_TEXTS`; a longer one is stepped over. Models have at most 512 layers."""
MAX_KEPT_TEXTS: Final = 1 << 8
MAX_KEPT_ELEMENTS: Final = 1 << 16
"""Of all arrays that are kept."""


@dataclass(slots=True)
class Allowance:
    """The rest of the limits for the files of one model that are still to be read."""

    header_bytes: int = MAX_HEADER_BYTES
    keys: int = MAX_KEYS
    tensors: int = MAX_TENSORS
    texts: int = MAX_TEXTS
    kept_bytes: int = MAX_KEPT_BYTES
    kept_elements: int = MAX_KEPT_ELEMENTS
