"""Finds vLLM: the interpreter of its environment, its version, and the flags that this version has."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.machine.children import ask_child
from backends.machine.environment import child_environment
from budget.errors import LoadFailed

ANSWER_LIMIT_S: Final = 20.0
SERVER: Final = "vllm.entrypoints.openai.api_server"

# vLLM is not imported, because that takes ten seconds: its own files say what it takes.
_QUESTION: Final = """
import importlib.util, json, pathlib, re
found = importlib.util.find_spec("vllm")
if found is None or not found.submodule_search_locations:
    print(json.dumps(None))
    raise SystemExit
folder = pathlib.Path(found.submodule_search_locations[0])
def text(path):
    return path.read_text("utf-8", "replace") if path.is_file() else ""
version = re.search(r"__version__ = (?:version = )?['\\"]([^'\\"]+)", text(folder / "_version.py"))
flags = set(re.findall(r'"(--[a-z][a-z0-9-]+)"', text(folder / "engine" / "arg_utils.py")))
for file in folder.glob("entrypoints/**/cli_args.py"):
    flags.update(re.findall(r'"(--[a-z][a-z0-9-]+)"', text(file)))
    names = re.findall(r"^    ([a-z][a-z0-9_]*): ", text(file), re.M)
    flags.update("--" + name.replace("_", "-") for name in names)
print(json.dumps([version[1] if version else "", sorted(flags)]))
"""


@dataclass(frozen=True, slots=True)
class VllmProgram:
    """An installed vLLM.

    Attributes:
        python: the interpreter of its environment.
        version: its version; empty where its files do not say.
        flags: the options of its API server.
    """

    python: str
    version: str
    flags: frozenset[str]

    @property
    def command(self) -> list[str]:
        """The first words of the command line of its API server."""
        # Not `vllm serve`: that asks the environment for a distribution of the name vllm.
        return [self.python, "-m", SERVER]


def find_program(python: str | None = None) -> VllmProgram:
    """The vLLM of an interpreter; without one, that of `vllm` on the PATH or of this interpreter.

    Raises:
        LoadFailed: there is none, or its interpreter cannot be run.
    """
    chosen = python or _on_path() or sys.executable
    answer = ask_child([chosen, "-c", _QUESTION], child_environment(), ANSWER_LIMIT_S)
    try:
        found = json.loads(answer.out)
    except ValueError:
        raise _none(chosen, answer.log.strip().rpartition("\n")[2] or "no answer") from None
    if found is None:
        raise _none(chosen, "it has no module vllm")
    version, flags = found
    return VllmProgram(chosen, str(version), frozenset(map(str, flags)))


def _on_path() -> str | None:
    """The interpreter beside a `vllm` that is on the PATH."""
    script = shutil.which("vllm")
    beside = Path(script).with_name("python") if script else None
    return str(beside) if beside is not None and beside.exists() else None


def _none(python: str, why: str) -> LoadFailed:
    return LoadFailed(
        f"There is no vLLM for {python}: {why}.",
        hint="Install vLLM into an environment of its own and name its interpreter with `python`.",
        python=python,
    )
