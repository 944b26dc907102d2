"""Fact sheets on people, and reports on them as one sentence a fact."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Final = _words(
    "Alma Boris Clara Dario Edda Felix Greta Hugo Irma Jonas Karla Lukas Mara Nils Orla Paul Rosa Sven "
    "Tilda Uwe Vera Willem Yara Zeno"
)
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "city": _words("Bergen Lisbon Turin Gdansk Malaga Ghent Porto Riga Basel Cork Lyon Vienna"),
    "job": _words(
        "baker nurse pilot welder lawyer tailor miner painter farmer carpenter judge sailor"
    ),
    "born": _words("1950 1954 1958 1962 1966 1970 1974 1978 1982 1986 1990 1994"),
    "pet": _words("cat dog parrot rabbit goat pony turtle lizard hamster canary ferret hen"),
    "sport": _words(
        "tennis rugby chess hockey golf squash cricket polo darts soccer handball curling"
    ),
    "dish": _words("soup stew pasta curry risotto pancakes salad dumplings pie fish beans bread"),
    "language": _words(
        "Danish Polish Greek Welsh Finnish Dutch Turkish Basque Czech Hindi Korean Latin"
    ),
}
"""The values of each key. No value belongs to two keys."""
_SENTENCES: Final = {
    "city": "lives in {}",
    "job": "works as a {}",
    "born": "was born in {}",
    "pet": "keeps a {}",
    "sport": "plays {}",
    "dish": "cooks {}",
    "language": "speaks {}",
}
_PATTERNS: Final = {
    key: re.compile(r"(\w+) " + sentence.format(r"(\w+)")) for key, sentence in _SENTENCES.items()
}
FEWEST: Final = 4
MOST: Final = 6


@dataclass(frozen=True, slots=True)
class Statement:
    """What one sentence of a report says; `key` is empty where it says nothing of a fact sheet's kind."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class FactSheet:
    """A person's name and 4 to 6 facts, which are in the order in which they are listed."""

    name: str
    facts: tuple[Statement, ...]

    @property
    def task(self) -> str:
        """What the producer is asked."""
        listed = "\n".join(f"{fact.key}: {fact.value}" for fact in self.facts)
        return f"Write a report on {self.name} from these facts.\n{listed}"

    def report(self, said: Sequence[Statement] | None = None) -> str:
        """A report of these statements; by default of all facts, which makes a perfect one."""
        chosen = self.facts if said is None else said
        return " ".join(f"{self.name} {_SENTENCES[one.key].format(one.value)}." for one in chosen)


def sheets(seed: int) -> Iterator[FactSheet]:
    """Fact sheets without end; the same ones for the same seed."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret
    while True:
        keys = draw.sample(sorted(VALUES), draw.randint(FEWEST, MOST))
        facts = tuple(Statement(key, draw.choice(VALUES[key])) for key in keys)
        yield FactSheet(draw.choice(NAMES), facts)


def statements(report: str, name: str) -> list[Statement]:
    """What a report states of the person of this name, sentence by sentence."""
    sentences = [part.strip() for part in report.split(".")]
    return [_statement(sentence, name) for sentence in sentences if sentence]


def _statement(sentence: str, name: str) -> Statement:
    for key, pattern in _PATTERNS.items():
        if (found := pattern.fullmatch(sentence)) and found[1] == name:
            return Statement(key, found[2])
    return Statement("", sentence)
