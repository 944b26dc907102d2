"""The tree explains itself: one name for one thing, folders that a reader takes in at a glance."""

from __future__ import annotations

import ast
import gzip
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shim", "budget", "backends", "traces", "harness")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FOLDERS = sorted({path.parent for path in MODULES})

SHARED_FILE_NAMES = {
    "__init__.py": "every folder has one",
    "__main__.py": "`python -m` of the command line and of the keeper",
    "command.py": "the command itself, where a command's folder holds more than that",
    "keeper.py": "the keeper, and the command of its name",
    "models.py": "what a configured model is, and the commands about models",
    "trust.py": "trusting a file, and the command of its name",
}
SHARED_CLASS_NAMES: dict[str, str] = {}
MOST_ENTRIES = 16


def homes_of_classes() -> dict[str, list[str]]:
    """The modules that define each public class."""
    homes = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    return homes


def test_no_two_public_classes_share_a_name() -> None:
    """A class that is met in a traceback or a decision record has one home."""
    shared = {name: homes for name, homes in homes_of_classes().items() if len(homes) > 1}
    assert {name: shared[name] for name in shared.keys() - SHARED_CLASS_NAMES.keys()} == {}
    assert SHARED_CLASS_NAMES.keys() <= shared.keys(), "a name on the list is not shared any more"


def test_files_share_a_name_only_where_the_list_says_why() -> None:
    """A file's name alone says which one it is."""
    homes = defaultdict(list)
    for path in MODULES:
        homes[path.name].append(str(path.relative_to(ROOT)))
    shared = {name: found for name, found in homes.items() if len(found) > 1}
    assert {name: shared[name] for name in shared.keys() - SHARED_FILE_NAMES.keys()} == {}
    assert SHARED_FILE_NAMES.keys() <= shared.keys(), "a name on the list is not shared any more"


def test_no_folder_holds_more_than_a_reader_takes_in() -> None:
    """About a dozen entries, modules and folders together."""
    entries = {
        str(folder.relative_to(ROOT)): sum(
            path.suffix == ".py" or (path.is_dir() and path in FOLDERS) for path in folder.iterdir()
        )
        for folder in FOLDERS
    }
    assert {name: count for name, count in entries.items() if count > MOST_ENTRIES} == {}


@pytest.mark.parametrize("packed", [gzip.compress(b"written in this second")])
def test_a_test_of_bytes_has_one_name_in_every_worker(
    request: pytest.FixtureRequest, packed: bytes
) -> None:
    """Its bytes were its name. Workers that collected in different seconds then had different tests."""
    assert packed
    assert request.node.name.endswith("[packed]")
