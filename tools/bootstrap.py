"""Set up everything that `make demo`, `make test` and `make check` need; standard library only.

Creates `.venv`, builds llama-cpp-python with llama.cpp's own programs once for this machine
(`llama_wheel.py`), installs the pinned dependencies and the project, and leaves a stamp: a second
run with the same inputs does nothing and needs no network.

Environment: KEEPWARM_CUDA=on|off|auto (default auto: on when a GPU and nvcc are here), CC and CXX,
CMAKE_ARGS (added to ours), XDG_CACHE_HOME (where built wheels are kept).
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file is what tells people so
    sys.exit(
        "keepwarm needs Python 3.11 or newer; this is %d.%d. Install python3.11 (or newer) and "  # noqa: UP031
        "run: make PYTHON=python3.11 setup" % sys.version_info[:2]
    )

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The folder above has to be on the path first: this file runs before anything is installed.
from tools import llama_wheel  # noqa: E402
from tools.setup_run import LogFile, SetupError, only_one, run_logged, say  # noqa: E402

VENV = ROOT / ".venv"
BUILD = ROOT / "build"
STAMP = VENV / ".keepwarm-stamp"
PACKAGES = VENV / "packages"
INPUTS = (
    "pyproject.toml",
    "constraints.txt",
    "tools/bootstrap.py",
    "tools/llama_wheel.py",
    "tools/setup_run.py",
)


def fingerprint() -> str:
    """The hash of all that a set-up depends on: our inputs, the Python, the choice of CUDA."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes() + b"\0")
    # The interpreter behind the environment, so that the environment's own gives the same answer.
    version = ".".join(map(str, sys.version_info[:3]))
    digest.update(f"{version} {ROOT} {os.environ.get('KEEPWARM_CUDA', 'auto')}".encode())
    return digest.hexdigest()


def is_done() -> bool:
    """Whether a whole set-up with these very inputs is here."""
    try:
        return STAMP.read_text(encoding="ascii") == fingerprint() and venv_python().exists()
    except OSError:
        return False


def venv_python() -> Path:
    """The environment's interpreter."""
    return VENV / "bin" / "python"


def make_venv(log: LogFile) -> None:
    """Create `.venv`, or keep one that works and is of this Python."""
    if _venv_works():
        return
    if importlib.util.find_spec("ensurepip") is None:
        major, minor = sys.version_info[:2]
        raise SetupError(
            f"this Python has no venv module; run: sudo apt install python{major}.{minor}-venv"
        )
    say("creating .venv")
    shutil.rmtree(VENV, ignore_errors=True)
    base = getattr(sys, "_base_executable", sys.executable)
    run_logged([base, "-m", "venv", str(VENV)], log=log, what="creating .venv")


def _venv_works() -> bool:
    if not venv_python().exists():
        return False
    probe = "import pip, sys; print(sys.version_info[:2])"
    done = subprocess.run([venv_python(), "-c", probe], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == str(tuple(sys.version_info[:2]))


def install_rest(log: LogFile) -> None:
    """Install the pinned dependencies and the project itself, editable."""
    say("installing the Python dependencies and keepwarm")
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    # The build backend first, so that it is pinned too and building the project needs no network.
    run_logged([*pip, *constraints, "setuptools"], log=log, what="installing setuptools")
    # One path file instead of a finder of setuptools, which type checkers do not follow.
    mode = ["--config-settings", "editable_mode=compat"]
    project = ["--no-build-isolation", *mode, "-e", f"{ROOT}[dev]"]
    run_logged([*pip, *constraints, *project], log=log, what="installing dependencies")
    show_packages()


def show_packages() -> None:
    """Lead the environment's path to the packages alone, and not to `tests` and `tools` beside them.

    As in an installed wheel, a plain folder `traces` in the working folder shadows none of them.
    """
    (path_file,) = (VENV / "lib").glob("python*/site-packages/__editable__.keepwarm-*.pth")
    PACKAGES.mkdir(exist_ok=True)
    for marker in ROOT.glob("*/py.typed"):
        link = PACKAGES / marker.parent.name
        link.unlink(missing_ok=True)
        link.symlink_to(marker.parent)
    path_file.write_text(f"{PACKAGES}\n", encoding="utf-8")


def set_up() -> None:
    """All the steps, in order; the stamp is taken away first and written last.

    Raises:
        SetupError: a step failed; the message is one for people.
    """
    BUILD.mkdir(exist_ok=True)
    log = LogFile(BUILD / "setup.log")
    STAMP.unlink(missing_ok=True)
    make_venv(log)
    llama_wheel.provide(VENV, llama_wheel.pinned_version(ROOT / "constraints.txt"), log)
    install_rest(log)
    llama_wheel.verify(VENV, log)
    partial = STAMP.with_suffix(".partial")
    partial.write_text(fingerprint(), encoding="ascii")
    partial.replace(STAMP)
    say("set-up is complete; `. .venv/bin/activate` gives this shell the command keepwarm")


def _interrupted(signum: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def main() -> int:
    """Set up when something changed; 0 when all is well, 1 on failure, 130 when interrupted."""
    if is_done():
        return 0
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        with only_one(BUILD / ".setup.lock", "set-up of this folder"):
            if not is_done():
                set_up()
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
