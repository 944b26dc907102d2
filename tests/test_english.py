"""Sentences name their subject: a request, an engine, a client, a model, a program, a user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRONOUNS = "who|whom|whoever|somebody|nobody|anybody|anyone|someone|everybody"
PICTURES = "desk|shelf|sayings|setback|upkeep"
WORDS = re.compile(rf"\b(?:{PRONOUNS}|{PICTURES})s?\b", re.IGNORECASE)
TREES = ("budget", "backends", "shim", "traces", "examples", "tests")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md", "docs/*.md")


def lines_of(pattern: str) -> list[str]:
    """The lines of the files of that pattern in which a word of the list stands, with their places."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(ROOT.glob(pattern))
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if WORDS.search(line)
    ]


@pytest.mark.parametrize("pattern", [f"{tree}/**/*.py" for tree in TREES] + list(PAGES))
def test_no_sentence_hides_its_subject(pattern: str) -> None:
    """A reader learns which part of the system acts, and meets no private picture of the author."""
    assert list(ROOT.glob(pattern)), "the pattern finds nothing"
    assert lines_of(pattern) == []
