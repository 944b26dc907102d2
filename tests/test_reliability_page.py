"""The page of promises names tests and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_and_file_that_the_page_names_is_there() -> None:
    """A promise whose proof was moved or removed would be a promise without one."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    cells = re.findall(r"`[^`]+`", text)
    paths = re.findall(r"(?:tests|shim|backends|budget|bench)/[\w/]+\.py", " ".join(cells))
    names = re.findall(r"(?<![/\w])test_\w+\.py", " ".join(cells))
    missing = [path for path in paths if not (ROOT / path).is_file()]
    missing += [name for name in names if not list((ROOT / "tests").rglob(name))]
    assert missing == []
    assert len(paths) > 40
