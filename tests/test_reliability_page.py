"""The page of promises names tests and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_and_file_that_the_page_names_is_there() -> None:
    """A promise whose proof was moved or removed would be a promise without one."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    missing = []
    for cell in re.findall(r"`[^`]+`", text):
        for path in re.findall(r"(?:tests|shim|backends|budget|bench)/[\w/]+\.py", cell):
            if not (ROOT / path).is_file():
                missing.append(path)
        for name in re.findall(r"(?<![/\w])test_\w+\.py", cell):
            if not list((ROOT / "tests").rglob(name)):
                missing.append(name)
    assert missing == []
    assert text.count("tests/") > 20
