"""llama-cpp-python with llama.cpp's own programs: built once per machine, installed from a cache.

pip keeps wheels that it built by name and version only, whatever CMAKE_ARGS they were built with; a
wheel without the programs would be taken for ours. So built wheels are kept under a key of all that
makes them different: version, arguments, the CPU's features (`-march=native`), the compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.setup_run import LogFile, SetupError, clean_env, only_one, run_logged, say

PACKAGE = "llama-cpp-python"
CMAKE_ARGS = (
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_TOOLS_INSTALL=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib",
)
PROGRAMS = {
    "llama-server": "--version",
    "llama-fit-params": "--version",
    "llama-quantize": "--help",
    "ggml-rpc-server": "--help",
}
"""Programs that have to be there, with an argument that makes each print something and end."""
BYTES_PER_COMPILER = 3 * 2**29
CXX_PROBE = b"#include <thread>\n#include <vector>\nint main() { return 0; }\n"


def pinned_version(constraints: Path) -> str:
    """The version of llama-cpp-python that the constraints ask for."""
    match = re.search(rf"^{PACKAGE}==(\S+)$", constraints.read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise SetupError(f"{constraints.name} does not pin {PACKAGE}")
    return match[1]


def provide(venv: Path, version: str, log: LogFile) -> None:
    """Have the package installed with programs that run, building it when no cache has it.

    Raises:
        SetupError: no compiler, a failed build, or programs that do not run even when built anew.
    """
    args = cmake_args()
    key = cache_key(version, args)
    marker = venv / ".keepwarm-llama"
    if marker.is_file() and marker.read_text("ascii") == key and not broken_programs(venv):
        return
    folder = cache_folder() / key
    for attempt in ("cached", "fresh"):
        with only_one(folder.parent / f".{key}.lock", f"build of {PACKAGE}"):
            wheel = next(iter(sorted(folder.glob("*.whl"))), None)
            if wheel is None:
                wheel = build(venv, version, args, folder, log)
        install(venv, wheel, log)
        broken = broken_programs(venv)
        if not broken:
            marker.write_text(key, "ascii")
            return
        shutil.rmtree(folder, ignore_errors=True)
        if attempt == "cached":
            say(f"{', '.join(broken)} missing or broken in {wheel.name}; building once more")
    verify(venv, log)


def cache_folder() -> Path:
    """Where wheels are kept."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "keepwarm" / "wheels"


def cmake_args() -> tuple[str, ...]:
    """All the arguments of the build: ours, CUDA's where it is wanted, and those of the user."""
    cuda = ("-DGGML_CUDA=ON",) if wants_cuda() else ()
    return (*CMAKE_ARGS, *cuda, *os.environ.get("CMAKE_ARGS", "").split())


def wants_cuda() -> bool:
    """Whether to build for CUDA: KEEPWARM_CUDA, or a GPU and nvcc that are really here."""
    choice = os.environ.get("KEEPWARM_CUDA", "auto").lower()
    if choice not in ("on", "off", "auto"):
        raise SetupError(f"KEEPWARM_CUDA: found {choice!r}; allowed: on, off, auto")
    if choice == "off":
        return False
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if choice == "on":
        if nvcc is None:
            raise SetupError("KEEPWARM_CUDA=on needs nvcc; install the CUDA toolkit")
        return True
    return _has_gpu() and nvcc is not None


def _has_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    try:
        done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU " in done.stdout


def compiler(kind: str) -> str | None:
    """The path of the C or C++ compiler, as CMake would choose it."""
    variable, default = {"c": ("CC", "cc"), "c++": ("CXX", "c++")}[kind]
    return shutil.which(os.environ.get(variable) or default)


def cache_key(version: str, args: tuple[str, ...]) -> str:
    """What makes one built wheel different from another."""
    cxx = compiler("c++")
    described = ""
    if cxx is not None:
        done = subprocess.run([cxx, "--version"], capture_output=True, text=True)
        described = next(iter(done.stdout.splitlines()), "")
    parts = (version, *args, platform.machine(), sys.platform, cpu_features(), described)
    return f"{version}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"


def cpu_features() -> str:
    """The processor's model and features, as far as the machine tells."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    features = facts.get("flags") or facts.get("Features") or ""
    return " ".join([facts.get("model name", ""), *sorted(features.split())])


def check_compilers() -> None:
    """Raise `SetupError`, one line, when there is no C++ compiler that works."""
    missing = [kind for kind in ("c", "c++") if compiler(kind) is None]
    advice = "run: sudo apt install build-essential cmake"
    if missing:
        names = " and ".join(f"{kind.upper()} compiler" for kind in missing)
        raise SetupError(f"no {names} found, and llama.cpp has to be compiled; {advice}")
    command = [str(compiler("c++")), "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(command, input=CXX_PROBE, capture_output=True)
    if done.returncode != 0:
        raise SetupError(f"the C++ compiler ({command[0]}) cannot compile; {advice}")


def parallel_compilers() -> int:
    """How many compilers may run at once: one a processor, and memory for each."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cpus or 1, memory // BYTES_PER_COMPILER))


def build(venv: Path, version: str, args: tuple[str, ...], folder: Path, log: LogFile) -> Path:
    """Build the wheel from source into the cache and return its path."""
    check_compilers()
    cmake = shutil.which("cmake")
    if cmake is None:
        say("no cmake here; taking the one from the package index")
    jobs = parallel_compilers()
    say(
        f"building llama.cpp ({PACKAGE} {version}) with {jobs} compilers at once; this takes "
        f"about {max(1, round(20 / jobs))} to {max(3, round(40 / jobs))} minutes, once"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.parent) as scratch:
        out = Path(scratch, "wheel")
        env = clean_env(
            CMAKE_ARGS=" ".join(args), CMAKE_BUILD_PARALLEL_LEVEL=str(jobs), TMPDIR=scratch
        )
        pip: list[str | Path] = [
            venv / "bin" / "python",
            "-m",
            "pip",
            "wheel",
            "--disable-pip-version-check",
            "-v",
        ]
        pip += ["--no-cache-dir", "--no-deps", f"--no-binary={PACKAGE}", "-w", out]
        try:
            run_logged([*pip, f"{PACKAGE}=={version}"], log=log, what="building llama.cpp", env=env)
        except SetupError as error:
            hint = "" if cmake else " cmake is missing: run: sudo apt install cmake."
            raise SetupError(f"{error}{hint}") from None
        shutil.rmtree(folder, ignore_errors=True)
        out.replace(folder)
    say(f"built in {(time.monotonic() - started) / 60:.1f} minutes; kept in {folder}")
    return next(iter(folder.glob("*.whl")))


def install(venv: Path, wheel: Path, log: LogFile) -> None:
    """Install one wheel over whatever version is there, without its dependencies."""
    say(f"installing {wheel.name}")
    pip: list[str | Path] = [
        venv / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
    ]
    pip += ["--no-deps", "--no-index", "--force-reinstall", wheel]
    run_logged(pip, log=log, what=f"installing {wheel.name}")


def programs_folder(venv: Path) -> Path | None:
    """`site-packages/bin` of the environment, where the wheel puts llama.cpp's programs."""
    return next(iter(venv.glob("lib/python3.*/site-packages/bin")), None)


def broken_programs(venv: Path) -> list[str]:
    """The programs that are not there or do not start."""
    folder = programs_folder(venv)
    return [
        name
        for name, argument in PROGRAMS.items()
        if folder is None or not _starts(folder / name, argument)
    ]


def _starts(program: Path, argument: str) -> bool:
    # llama-quantize prints its usage with status 1, so what counts is that it said something of its own.
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    try:
        done = subprocess.run(
            [program, argument], capture_output=True, text=True, timeout=60, env=env
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    said = (done.stdout + done.stderr).lower()
    return done.returncode in (0, 1) and ("usage" in said or "version" in said)


def verify(venv: Path, log: LogFile) -> None:
    """Raise `SetupError` when a program does not run."""
    broken = broken_programs(venv)
    if broken:
        raise SetupError(
            f"{', '.join(broken)} of {PACKAGE} do not run, even built anew; the log is {log.path}. "
            f"Remove {cache_folder()} and .venv and run make setup again"
        )
