"""Files and folders whose names are not UTF-8, as on disks of before: they serve like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends.engine_process.process import engine_environment
from backends.machine.environment import OWNER_VARIABLE
from backends.machine.processes import has_variable
from budget.errors import InvalidRequest
from shim import Shim
from shim.wire.json_lines import encode
from shim.wire.messages import Reload, TakeIn, read

ODD = os.fsdecode(b"caf\xe9")
"""In Latin-1; Python reads it with half a surrogate."""


def test_messages_name_such_files() -> None:
    """What a client hands over comes to the keeper as it is."""
    fields = {
        "config": {"models": {"m": {"path": f"/{ODD}.gguf"}}},
        "label": ODD,
        "file": f"/{ODD}",
    }
    asked = read(encode({"op": "reload", "id": 1, **fields}))
    assert isinstance(asked, Reload)
    assert (asked.config, asked.label, asked.file) == tuple(fields.values())
    entries = {"m": {"path": f"/{ODD}.gguf"}}
    asked = read(encode({"op": "take_in", "entries": entries, "read_at": 1.0, "file": f"/{ODD}"}))
    assert isinstance(asked, TakeIn)
    assert asked.entries == entries


@pytest.mark.parametrize("file", [7, "", "x" * 5000, ["x"]])
def test_what_is_no_path_is_refused(file: object) -> None:
    """Half a surrogate is all that is let through."""
    with pytest.raises(InvalidRequest, match="4096 characters"):
        read(encode({"op": "reload", "id": 1, "config": {}, "file": file}))


def test_engines_of_such_a_runtime_folder_are_found(tmp_path: Path) -> None:
    """Their mark is compared as the bytes that the kernel has."""
    env = engine_environment(tmp_path / ODD, {})
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = has_variable(child.pid, f"{OWNER_VARIABLE}={tmp_path / ODD}")
        child.communicate(b"\n")
    assert found


@pytest.mark.real
def test_a_model_of_such_a_name_answers(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """It is measured, loaded and asked."""
    file = tmp_path / ODD / f"{ODD}.gguf"
    file.parent.mkdir()
    shutil.copyfile(tiny_models["producer"], file)
    entry = {"path": str(file), "context": 512}
    with Shim({"budget": {"device": "host"}, "models": {"m": entry}}) as shim:
        assert shim.chat("m", "Hello.", max_tokens=1).usage.completion_tokens == 1
