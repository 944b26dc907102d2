"""Vocabularies made up on the spot, in the three kinds that llama.cpp reads.

The words are made of letters by a seeded generator: nothing is downloaded, and the same seed gives
the same bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama.cpp's token types (`enum llama_token_type`)

_LETTERS = "eeeeettttaaaaooooiiiinnnsssrrrhhlldduucmwfgypbvk"
_MAX_PART = 5


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tables. `unlikely` are the ids that a model of noise should not produce."""

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    unlikely: list[int] = field(default_factory=list)


def byte_symbols() -> list[str]:
    """The printable stand-ins for the 256 bytes in a byte-level vocabulary, as GPT-2 defines them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in symbols)
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [symbols[byte] for byte in range(256)]


def byte_level(n_tokens: int, *, pre: str, specials: list[str], seed: int) -> Vocabulary:
    """A byte-level BPE vocabulary: bytes, then merges of what is there, then the special tokens."""
    symbols = byte_symbols()
    space = symbols[32]
    words, merges = _merged(n_tokens - len(symbols) - len(specials), space, seed)
    tokens = [*symbols, *words, *specials]
    first_special = len(tokens) - len(specials)
    types = [NORMAL] * first_special + [CONTROL] * len(specials)
    return Vocabulary(
        "gpt2",
        pre,
        tokens,
        types,
        merges=merges,
        special={token: first_special + i for i, token in enumerate(specials)},
        # Lone bytes would make invalid UTF-8, and an early end of text would make short answers.
        unlikely=[*range(256), *range(first_special, len(tokens))],
    )


def _merged(count: int, space: str, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)  # noqa: S311 - words, not secrets
    letters = sorted(set(_LETTERS))
    known = {*letters, space}
    pool = [*_LETTERS, *(space * len(_LETTERS))]
    words: list[str] = []
    merges: list[str] = []
    while len(words) < count:
        left = pool[int(rng.random() * len(pool))]
        right = pool[int(rng.random() * len(pool))]
        word = left + right
        if space in right or left == space == right or word in known:
            continue
        known.add(word)
        words.append(word)
        if len(word) <= _MAX_PART:
            pool.append(word)
        merges.append(f"{left} {right}")
    return words, merges


def sentence_pieces(n_tokens: int, *, seed: int) -> Vocabulary:
    """A SentencePiece-like vocabulary: `<unk> <s> </s>`, the bytes, then scored pieces."""
    head = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [
        "\u2581",
        *sorted(set(_LETTERS)),
        *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?-'\"()",
    ]
    count = n_tokens - len(head) - len(raw) - len(letters)
    words, _ = _merged(count, "\u2581", seed)
    tokens = [*head, *raw, *words, *letters]
    first_word = len(head) + len(raw)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        [UNKNOWN, CONTROL, CONTROL] + [BYTE] * len(raw) + [NORMAL] * (len(words) + len(letters)),
        scores=[0.0] * first_word + [-float(i) for i in range(len(words) + len(letters))],
        special={"<unk>": 0, "<s>": 1, "</s>": 2},
        unlikely=list(range(first_word)),
    )


def word_pieces(n_tokens: int, *, seed: int) -> Vocabulary:
    """A WordPiece vocabulary as BERT's: word starts carry the space mark in llama.cpp's form."""
    head = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*sorted(set(_LETTERS)), *"jqxz0123456789.,:;!?-'"]
    start = "\u2581"
    single = [start + letter for letter in letters] + letters
    words, _ = _merged(n_tokens - len(head) - len(single) - 1, start, seed)
    tokens = [*head, *single, *words]
    tokens += [f"{start}pad{i}" for i in range(n_tokens - len(tokens))]
    unique = list(dict.fromkeys(tokens))
    unique += [f"{start}fill{i}" for i in range(n_tokens - len(unique))]
    return Vocabulary(
        "bert",
        None,
        unique,
        [CONTROL] * len(head) + [NORMAL] * (n_tokens - len(head)),
        special={token: i for i, token in enumerate(head)},
    )
