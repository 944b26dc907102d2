"""The documentation names files, tests and folders that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = ("shim", "budget", "backends", "traces", "harness", "tests", "bench", "tools", "examples")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "decisions").glob("*.md"))
CONFIGURATION_KEYS = {"budget.policy"}
NAMES = {path.name for tree in TREES for path in (ROOT / tree).rglob("*.py")}


def quoted(page: Path) -> str:
    """Everything that a page has between backticks, a line for each piece."""
    return "\n".join(re.findall(r"`([^`\n]+)`", page.read_text("utf-8")))


def missing_files(page: Path) -> list[str]:
    """The Python files that a page names and that do not exist.

    A bare name may be in any folder. A name in capitals (`NAME.py`) stands for any file.
    """
    words = re.findall(r"(?<![\w./-])[\w./-]+\.py\b", quoted(page))
    return [
        word
        for word in words
        if not Path(word).stem.isupper()
        and not ((ROOT / word).is_file() if "/" in word else word in NAMES)
    ]


def missing_folders(page: Path) -> list[str]:
    """The folders of the source tree that a page names and that do not exist."""
    pattern = rf"(?<![\w./-])(?:{'|'.join(TREES)})/[\w/]*(?![\w./*-])"
    words = re.findall(pattern, quoted(page))
    return [word for word in words if not (ROOT / word).is_dir()]


def missing_modules(page: Path) -> list[str]:
    """The dotted names that begin with one of our packages and lead to no module or folder."""
    packages = "shim|budget|backends|traces|harness"
    names = re.findall(rf"(?<![\w./-])(?:{packages})\.[a-z_]+(?:\.[a-z_]+)*", quoted(page))
    return [n for n in names if n not in CONFIGURATION_KEYS and not leads_somewhere(n)]


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is a module, a folder, or a function of the module before its last dot."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    home = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    return home.is_file() and path.name in home.read_text("utf-8")


def missing_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8"))
    return [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_folder_module_and_link_that_a_page_names_is_there(page: Path) -> None:
    """A name that was moved or removed sends a reader to nothing."""
    found = {
        "files": missing_files(page),
        "folders": missing_folders(page),
        "modules": missing_modules(page),
        "links": missing_links(page),
    }
    assert {kind: names for kind, names in found.items() if names} == {}


def test_the_page_of_promises_shows_a_proof_for_each() -> None:
    """A promise whose proof was moved or removed would be a promise without one."""
    rows = [
        line
        for line in (ROOT / "docs" / "reliability.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 40
    assert [row for row in rows if not re.search(r"test_\w+\.py", row.rsplit("|", 2)[1])] == []
