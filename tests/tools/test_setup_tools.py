"""`make setup`: what is built once, what is said when it fails, and what an interrupt leaves."""

import ast
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools import bootstrap, llama_wheel, setup_run
from tools.setup_run import LogFile, SetupError, StepProgress, only_one, run_logged

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    """A log of its own."""
    return LogFile(tmp_path / "setup.log")


def test_an_old_python_can_read_the_file_that_tells_it_so() -> None:
    """bootstrap.py parses on Python 3.7, so that people see a sentence and not a SyntaxError."""
    text = (ROOT / "tools" / "bootstrap.py").read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 7))
    checks = [node.lineno for node in tree.body if isinstance(node, ast.If)]
    imports = [node.lineno for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert min(checks) < min(line for line in imports if line > checks[0])


def test_every_target_sets_itself_up_first() -> None:
    """demo, test, check and bench run the set-up before anything else."""
    for target in (
        "setup",
        "check",
        "test",
        "test-full",
        "demo",
        "examples",
        "bench",
        "models",
        "voice",
    ):
        plan = subprocess.run(
            ["make", "--no-print-directory", "-n", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert "tools/bootstrap.py" in plan[0], target


def test_ci_runs_the_checks_the_tests_and_the_examples() -> None:
    """.ci/run is executable and stops at the first failure."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text("utf-8").splitlines()
    assert lines[0].endswith("bash")
    assert "set -euo pipefail" in lines
    made = [line for line in lines if line.startswith(("make ", "beside "))]
    assert made == [
        "make check",
        "make test",
        "make examples",
        "beside promtool test-alerts",
        "beside chromium test-browser",
    ]


@pytest.mark.parametrize(("found", "rc", "said"), [(1, 0, "left out"), (0, 3, "")])
def test_ci_leaves_out_what_cannot_be_had_and_fails_where_its_test_does(
    tmp_path: Path, found: int, rc: int, said: str
) -> None:
    """Without a network there is no promtool, which is no failure; a failing rule is one."""
    text = (ROOT / ".ci" / "run").read_text("utf-8")
    tools, bin_folder = tmp_path / "tools", tmp_path / ".venv" / "bin"
    tools.mkdir()
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    for name in ("promtool", "chromium"):
        (tools / f"{name}.py").write_text(f"raise SystemExit({found})")
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(re.sub("(?m)^make .*", "", text))
    (tmp_path / "Makefile").write_text("test-alerts:\n\t@exit 3\ntest-browser:\n\t@exit 3\n")
    command = ["bash", str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == (rc != 0)
    assert said in done.stdout


def test_a_finished_set_up_is_known_by_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done means: the stamp of these very inputs and a Python that is there."""
    for name in bootstrap.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "STAMP", venv / "stamp")
    assert not bootstrap.is_done()
    (venv / "stamp").write_text(bootstrap.fingerprint())
    assert bootstrap.is_done()
    monkeypatch.setenv("KEEPWARM_CUDA", "on")
    assert not bootstrap.is_done()
    monkeypatch.delenv("KEEPWARM_CUDA")
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("another==1\n")
    assert not bootstrap.is_done()


def test_the_pinned_version_is_read_from_the_constraints() -> None:
    """One place says which llama.cpp is built."""
    assert llama_wheel.pinned_version(ROOT / "constraints.txt")[0].isdigit()


def test_wheels_are_kept_apart_by_everything_that_makes_them_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Version, arguments, CPU features and compiler each change the key; nothing else does."""
    base = llama_wheel.cache_key("1", ("-DA=ON",))
    assert llama_wheel.cache_key("1", ("-DA=ON",)) == base
    others = {llama_wheel.cache_key("2", ("-DA=ON",)), llama_wheel.cache_key("1", ("-DA=OFF",))}
    with monkeypatch.context() as patch:
        patch.setattr(llama_wheel, "cpu_features", lambda: "another processor")
        others.add(llama_wheel.cache_key("1", ("-DA=ON",)))
    with monkeypatch.context() as patch:
        patch.setattr(llama_wheel, "compiler", lambda kind: None)
        others.add(llama_wheel.cache_key("1", ("-DA=ON",)))
    assert len(others | {base}) == 5


def test_arguments_of_the_user_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """CMAKE_ARGS of the environment come after ours, and so into the key."""
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1 -DY=2")
    monkeypatch.setenv("KEEPWARM_CUDA", "off")
    assert llama_wheel.cmake_args() == (*llama_wheel.CMAKE_ARGS, "-DX=1", "-DY=2")


def fake_program(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("choice", "smi", "nvcc", "wanted"),
    [
        ("auto", "echo 'GPU 0: X'", True, True),
        ("auto", "echo 'GPU 0: X'", False, False),
        ("auto", "echo 'no driver' >&2; exit 9", True, False),
        ("auto", None, True, False),
        ("off", "echo 'GPU 0: X'", True, False),
        ("on", None, True, True),
    ],
)
def test_cuda_is_built_only_for_a_gpu_that_is_really_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    smi: str | None,
    nvcc: bool,
    wanted: bool,
) -> None:
    """nvidia-smi has to list a GPU and nvcc has to be there; KEEPWARM_CUDA overrides."""
    if smi is not None:
        fake_program(tmp_path, "nvidia-smi", smi)
    which = {"nvidia-smi": tmp_path / "nvidia-smi" if smi else None, "nvcc": nvcc or None}
    monkeypatch.setattr(shutil, "which", lambda name, path=None: which[name])
    monkeypatch.setenv("KEEPWARM_CUDA", choice)
    assert llama_wheel.wants_cuda() is wanted


def test_a_wrong_choice_of_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but on, off and auto, and `on` without a toolkit, is one line."""
    monkeypatch.setenv("KEEPWARM_CUDA", "yes")
    with pytest.raises(SetupError, match="allowed: on, off, auto"):
        llama_wheel.wants_cuda()
    monkeypatch.setenv("KEEPWARM_CUDA", "on")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(SetupError, match="needs nvcc"):
        llama_wheel.wants_cuda()


def test_a_missing_or_broken_compiler_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is missing and what to install."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError) as missing:
        llama_wheel.check_compilers()
    assert "C compiler and C++ compiler" in str(missing.value)
    assert "apt install build-essential" in str(missing.value)
    assert "\n" not in str(missing.value)
    fake_program(tmp_path, "cc", "exit 0")
    fake_program(tmp_path, "c++", "exit 1")
    with pytest.raises(SetupError, match="cannot compile"):
        llama_wheel.check_compilers()


class FakeBuilds:
    """Stands in for building, installing and starting programs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: list[list[str]]) -> None:
        self.broken = broken
        self.built = 0
        monkeypatch.setattr(llama_wheel, "build", self.build)
        monkeypatch.setattr(llama_wheel, "install", lambda *args: None)
        monkeypatch.setattr(llama_wheel, "broken_programs", lambda venv: self.broken.pop(0))

    def build(
        self, venv: Path, version: str, args: tuple[str, ...], folder: Path, log: LogFile
    ) -> Path:
        """An empty wheel in its cache folder."""
        self.built += 1
        folder.mkdir(parents=True)
        wheel = folder / "llama.whl"
        wheel.touch()
        return wheel


def test_a_wheel_is_built_once_and_then_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: LogFile
) -> None:
    """A second environment on the machine installs what the first one built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builds = FakeBuilds(monkeypatch, broken=[[], [], []])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        llama_wheel.provide(tmp_path / name, "1.0", log)
    llama_wheel.provide(tmp_path / "one", "1.0", log)
    assert builds.built == 1
    assert builds.broken == []


def test_a_cached_wheel_without_programs_is_built_anew_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: LogFile
) -> None:
    """Programs that are missing lead to one more build, and then to a clear failure."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builds = FakeBuilds(monkeypatch, broken=[["llama-server"], []])
    llama_wheel.provide(tmp_path, "1.0", log)
    assert builds.built == 2
    (tmp_path / ".keepwarm-llama").unlink()
    builds.broken = [["llama-server"]] * 3
    with pytest.raises(SetupError, match="llama-server of llama-cpp-python do not run"):
        llama_wheel.provide(tmp_path, "1.0", log)
    assert builds.built == 3
    assert not (tmp_path / ".keepwarm-llama").exists()


@pytest.mark.real
def test_the_installed_programs_start() -> None:
    """All of llama.cpp's programs that keepwarm uses run without LD_LIBRARY_PATH."""
    assert llama_wheel.broken_programs(Path(sys.prefix)) == []


def test_programs_that_do_not_start_are_named(tmp_path: Path) -> None:
    """Not there, not executable, killed by the loader, silent: each counts as broken."""
    assert llama_wheel.broken_programs(tmp_path) == list(llama_wheel.PROGRAMS)
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "bin"
    folder.mkdir(parents=True)
    fake_program(folder, "llama-server", "echo version 1")
    fake_program(folder, "llama-fit-params", "exit 0")
    fake_program(folder, "llama-quantize", "echo usage; exit 1")
    fake_program(folder, "ggml-rpc-server", "echo 'no library, usage'; exit 127")
    assert llama_wheel.broken_programs(tmp_path) == ["llama-fit-params", "ggml-rpc-server"]


def test_progress_follows_the_steps_of_ninja_and_make() -> None:
    """Steps, elapsed time and an estimate from the mean step; configure checks do not count."""
    progress = StepProgress(now=0.0)
    progress.feed("  [1/2] Building C object CMakeFiles/cmTC.dir", now=5.0)
    assert progress.total == 0
    assert progress.describe(10.0) == "0:10 so far"
    progress.feed("  [1/200] g++ -c a.cpp", now=20.0)
    progress.feed("  [50/200] g++ -c b.cpp", now=69.0)
    assert progress.remaining_seconds(70.0) == pytest.approx(150.0)
    assert progress.describe(70.0) == "[50/200] 1:10 so far, about 2:30 left"
    progress.feed("  an ordinary line [3/4]", now=71.0)
    assert progress.done == 50
    by_make = StepProgress(now=0.0)
    by_make.feed("[ 42%] Building CXX object", now=1.0)
    assert (by_make.done, by_make.total) == (42, 100)


def test_a_failed_command_names_its_log_and_shows_the_end(log: LogFile) -> None:
    """The message has the status, the path of the full log, the error's line and the last lines."""
    script = "echo first; echo 'x.cpp: error: no such thing'; seq 100; exit 3"
    with pytest.raises(SetupError) as caught:
        run_logged(["sh", "-c", script], log=log, what="building it")
    message = str(caught.value)
    assert "building it failed with status 3" in message
    assert str(log.path) in message
    assert "error: no such thing" in message
    assert message.endswith("100")
    assert "first" in log.path.read_text("utf-8")


def test_an_interrupt_ends_everything_the_command_started(tmp_path: Path) -> None:
    """After Ctrl-C no compiler is left running: the last holder of the pipe is gone."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    program = (
        "from pathlib import Path; from tools.setup_run import LogFile, run_logged\n"
        f"run_logged(['sh', '-c', 'sleep 600 > {alive} & wait'], "
        f"log=LogFile(Path({str(tmp_path / 'log')!r})), what='it')\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    with alive.open("rb") as held_by_grandchild:
        ours.send_signal(signal.SIGINT)
        assert ours.wait(60) != 0
        ended, _, _ = select.select([held_by_grandchild], [], [], 30)
        assert ended
        assert held_by_grandchild.read() == b""


def test_two_set_ups_at_once_do_not_collide(tmp_path: Path) -> None:
    """While one process holds the lock no other gets it; afterwards it is free."""
    path = tmp_path / "lock"
    with only_one(path, "set-up"), path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not other.closed


def test_a_failed_set_up_does_not_look_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old stamp goes first; a failure is one line and status 1, an interrupt status 130."""
    stamp = tmp_path / "stamp"
    stamp.touch()
    monkeypatch.setattr(bootstrap, "STAMP", stamp)
    monkeypatch.setattr(bootstrap, "BUILD", tmp_path / "build")
    monkeypatch.setattr(signal, "signal", lambda *args: None)

    def fail(log: LogFile) -> None:
        raise SetupError("no venv module")

    def interrupt(log: LogFile) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "make_venv", fail)
    assert bootstrap.main() == 1
    assert "error: no venv module" in capsys.readouterr().out
    assert not stamp.exists()
    monkeypatch.setattr(bootstrap, "make_venv", interrupt)
    assert bootstrap.main() == 130
    assert not stamp.exists()


def test_the_environment_of_commands_is_free_of_what_changes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Make's job server and Python's path do not reach pip and cmake."""
    monkeypatch.setenv("MAKEFLAGS", "-j")
    monkeypatch.setenv("PYTHONPATH", "/x")
    env = setup_run.clean_env(TMPDIR="/y")
    assert "MAKEFLAGS" not in env
    assert "PYTHONPATH" not in env
    assert env["TMPDIR"] == "/y"
