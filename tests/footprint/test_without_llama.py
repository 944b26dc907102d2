"""Footprints and recommendations where llama.cpp is not installed, and nothing was measured before."""

from __future__ import annotations

import json
import subprocess
import sys
from os import environ
from pathlib import Path
from typing import Any

import pytest

from tools.shape_layouts import Shape
from tools.shapes import write

# Importing llama_cpp fails, whichever way it is looked for; files that are opened are listed.
PROGRAM = """
import json, sys

HOW = sys.argv.pop(1)

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llama_cpp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if HOW == "raises":
    sys.meta_path.insert(0, Blocked())
else:
    sys.modules["llama_cpp"] = None
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from shim.cli.root import main

try:
    main()
finally:
    assert not any(name.partition(".")[0] == "llama_cpp" for name, m in sys.modules.items() if m)
    print(json.dumps(opened), file=sys.stderr)
"""


def run(how: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """What the command prints, and the files that it opened."""
    places = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "STATE")}
    empty = folder / "bin"
    empty.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environ, **places, "KEEPWARM_LLAMA_BIN": str(empty)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found, json.loads(done.stderr.splitlines()[-1])


def measured(folder: Path, opened: list[str]) -> list[str]:
    """The files among those opened that hold measurements."""
    return [
        name for name in opened if name.startswith((str(folder / "cache"), str(folder / "state")))
    ]


@pytest.mark.parametrize("how", ["raises", "none"])
def test_the_closed_form_needs_no_llama_cpp_and_no_measurement(how: str, tmp_path: Path) -> None:
    """Header in, bytes out: nothing is read but the file."""
    path = write(Shape("m", "llama", 4, 256, 2000, 1024, 4, 4), tmp_path)
    found, opened = run(how, tmp_path, "inspect", str(path), "--source", "closed-form")
    assert found["source"] == "closed-form"
    assert found["devices"]["host"]["compute_bytes"] > 0
    assert found["learned"] is None
    assert measured(tmp_path, opened) == []
    on_gpu, _ = run(
        how, tmp_path, "inspect", str(path), "--source", "closed-form", "--n-gpu-layers", "5"
    )
    assert on_gpu["devices"]["cuda:0"]["weights_bytes"] > 0


def test_an_architecture_without_a_graph_is_computed_and_said_to_be_a_bound(tmp_path: Path) -> None:
    """Where no dry run is to be had, it can be served all the same."""
    path = write(Shape("m", "granite", 4, 256, 2000, 1024, 4, 4), tmp_path)
    found, _ = run("none", tmp_path, "inspect", str(path), "--source", "closed-form")
    assert found["source"] == "bound"
    assert found["devices"]["host"]["compute_bytes"] > 0


@pytest.mark.parametrize("how", ["raises", "none"])
def test_recommending_needs_no_llama_cpp_and_no_measurement(how: str, tmp_path: Path) -> None:
    """For a machine that is not here: only whether there is a plan is looked up."""
    found, opened = run(how, tmp_path, "recommend", "--vram", "8GiB")
    assert any(row["verdict"] == "fits" for row in found["models"])
    plan = str(tmp_path / "state" / "keepwarm" / "plan.json")
    assert set(measured(tmp_path, opened)) <= {plan}
