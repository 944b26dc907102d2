"""Build an environment of its own for programs that do not fit beside ours: `side_environment.py NAME`.

`tools/environments/NAME.txt` lists every package with its version, and `.venv-NAME` is where they go. No
dependency is resolved, so that a package which its metadata asks for and nothing here needs is left out of
the list. A second run with the same list does nothing and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The folder above has to be on the path first, because this file is run as a program.
from tools.setup_run import LogFile, SetupError, only_one, run_logged, say  # noqa: E402

LISTS = ROOT / "tools" / "environments"
BUILD = ROOT / "build"


def environment(name: str) -> Path:
    """The folder of an environment, whether or not it is there."""
    return ROOT / f".venv-{name}"


def listed(name: str) -> Path:
    """The list of packages of an environment."""
    return LISTS / f"{name}.txt"


def is_built(name: str) -> bool:
    """Whether the whole environment is there, of this very list and Python."""
    try:
        return _stamp(name).read_text("ascii") == _fingerprint(name)
    except OSError:
        return False


def build(name: str) -> Path:
    """Build an environment unless it is there; returns its interpreter.

    Raises:
        SetupError: a step failed; the message is one for people.
    """
    BUILD.mkdir(exist_ok=True)
    with only_one(BUILD / f".{name}.lock", f"set-up of .venv-{name}"):
        if not is_built(name):
            _build(name)
    return environment(name) / "bin" / "python"


def _build(name: str) -> None:
    log, folder = LogFile(BUILD / f"{name}.log"), environment(name)
    shutil.rmtree(folder, ignore_errors=True)
    base = getattr(sys, "_base_executable", sys.executable)
    say(f"creating .venv-{name}")
    run_logged([base, "-m", "venv", folder], log=log, what=f"creating .venv-{name}")
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    listing = ["--no-deps", "-r", str(listed(name))]
    run_logged([*pip, *listing], log=log, what=f"installing {listed(name).name}")
    # Programs of this size start twice as fast with bytecode. A file that is none is no failure.
    compiling = ["-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), str(folder / "lib")]
    run_logged(["sh", "-c", '"$@" || true', "sh", python, *compiling], log=log, what="compiling it")
    _stamp(name).write_text(_fingerprint(name), "ascii")
    say(f".venv-{name} is complete")


def _stamp(name: str) -> Path:
    return environment(name) / ".keepwarm-stamp"


def _fingerprint(name: str) -> str:
    digest = hashlib.sha256(listed(name).read_bytes())
    digest.update(f"{sys.version_info[:3]} {ROOT}".encode())
    return digest.hexdigest()


def main() -> int:
    """Build the environment that the command line names; 0 when it is there, 1 on failure."""
    names = sorted(path.stem for path in LISTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=names)
    try:
        build(parser.parse_args().name)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
