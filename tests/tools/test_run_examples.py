"""`make examples`: every example is run, bounded, and what cannot be had is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tools import run_examples
from tools.setup_run import SetupError

_SLEEPER = """
import time
try:
    print("begun", flush=True)
    time.sleep(60)
finally:
    print("tidied up", flush=True)
"""


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three examples of a test; one needs models, one a voice, one nothing."""
    (tmp_path / "examples").mkdir()
    for name in ("plain.py", "real.py", "spoken.py"):
        (tmp_path / "examples" / name).write_text(f"print('{name} ran')")
    needs = {"plain.py": (), "real.py": ("models",), "spoken.py": ("voice",)}
    monkeypatch.setattr(run_examples, "ROOT", tmp_path)
    monkeypatch.setattr(run_examples, "EXAMPLES", needs)
    monkeypatch.setattr(run_examples, "fetch_all", lambda _folder: True)
    monkeypatch.setattr(run_examples, "build", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["run_examples.py"])
    return tmp_path / "examples"


def test_every_example_is_run() -> None:
    """A new file in `examples` has to be named with what it needs."""
    files = {file.name for file in (run_examples.ROOT / "examples").glob("*.py")}
    assert files == set(run_examples.EXAMPLES)


def test_no_example_keeps_files_where_another_user_may_have_put_them() -> None:
    """A second user could not write there, or worked with the first one's models and memories."""
    for file in (run_examples.ROOT / "examples").rglob("*.py"):
        assert "gettempdir" not in file.read_text("utf-8"), file


def test_what_needs_a_missing_package_is_not_run_and_the_others_are(
    examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end is a failure that names the package, after all that could run has run."""

    def broken(_name: str) -> None:
        raise SetupError("no matching distribution found for av==18.1.0")

    monkeypatch.setattr(run_examples, "build", broken)
    assert run_examples.main() == 1
    said = capsys.readouterr().out
    assert "av==18.1.0" in said
    assert "plain.py ran" in said
    assert "real.py ran" in said
    assert "examples/spoken.py: not run, because voice is not there" in said
    assert "2 of 3 examples ended well" in said


def test_an_example_that_fails_or_does_not_end_is_a_failure(
    examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code, or its time, is said; the others run all the same."""
    (examples / "plain.py").write_text("raise SystemExit(3)")
    (examples / "real.py").write_text(_SLEEPER)
    monkeypatch.setattr(run_examples, "LIMIT_S", 1)
    monkeypatch.setattr(run_examples, "stop_keeper", lambda _env: None)
    assert run_examples.main() == 1
    said = capsys.readouterr().out
    assert "examples/plain.py: exit code 3" in said
    assert "begun" in said
    assert "tidied up" in said
    assert "examples/real.py: not through after 1 s" in said
    assert "spoken.py ran" in said


_STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("begun", flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_an_example_that_does_not_hear_ctrl_c_is_killed_whatever_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it started may hold its output open; the run went on only when that had ended."""
    monkeypatch.setattr(run_examples, "END_LIMIT_S", 0.3)
    command = [sys.executable, "-c", _STUBBORN]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        while not (started := psutil.Process(process.pid).children()):
            pass
        try:
            assert run_examples.ended(process) == ""
            assert started[0].is_running()
        finally:
            started[0].kill()


def test_an_interrupted_run_gives_the_example_time_to_end(
    examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed, and left the folder of its keeper."""
    (examples / "plain.py").write_text(_SLEEPER)
    ended = list[str]()
    told_to_end, communicate = run_examples.ended, subprocess.Popen.communicate

    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    def noted(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
        ended.append(told_to_end(process))
        return ended[0]

    monkeypatch.setattr(run_examples, "stop_keeper", lambda _env: None)
    monkeypatch.setattr(run_examples, "ended", noted)
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_examples.main()
    assert ended[0].startswith("tidied up")


def test_a_name_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a mistake of the command line, with the names that there are."""
    monkeypatch.setattr(sys, "argv", ["run_examples.py", "nothing.py"])
    with pytest.raises(SystemExit) as ended:
        run_examples.main()
    assert ended.value.code == 2
    assert "voice_agent.py" in capsys.readouterr().err
