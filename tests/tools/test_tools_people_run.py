"""The programs in `tools` that people run: any Python starts them, and long ones say how long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import own_python
from tools.train_demo_models import TimeLeft, run_told

TOOLS = Path(__file__).parents[2] / "tools"
PROGRAMS = sorted(
    file.name
    for file in TOOLS.glob("*.py")
    if re.search(r"python tools/", file.read_text("utf-8")) and file.name != "own_python.py"
)


def test_programs_that_people_run_start_by_their_own_python_before_they_import_anything_else() -> (
    None
):
    """A Python without packages would end in a traceback at the first import."""
    assert "train_demo_models.py" in PROGRAMS
    ours = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
    for name in PROGRAMS:
        before, begun, _ = (TOOLS / name).read_text("utf-8").partition("    by_own_python()\n")
        assert begun, name
        assert set(ours.findall(before)) - {"tools"} <= sys.stdlib_module_names, name


def test_a_python_without_keepwarm_hands_over_to_the_projects_own() -> None:
    """`-S` leaves out what is installed."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", TOOLS / "workloads.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "usage: workloads.py" in ran.stdout


def test_a_program_before_the_set_up_says_what_is_to_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and no traceback."""
    monkeypatch.setattr(own_python, "ROOT", tmp_path)
    monkeypatch.setattr(own_python, "_is_installed", lambda: False)
    with pytest.raises(SystemExit, match="Run `make setup` first"):
        own_python.by_own_python()


def test_training_says_how_much_time_is_left_over_all_its_parts() -> None:
    """By the steps of this run: those of an earlier one took no time now."""
    left = TimeLeft({"together": 100, "judge": 300})
    assert left.told("together 40/100 loss 3.0000", 10.0) == "together 40/100 loss 3.0000"
    assert left.told("together 60/100 loss 2.0000", 30.0).endswith(", about 5:40 left")
    assert left.told("judge 200/300 loss 1.0000", 140.0).endswith(", about 0:50 left")
    assert left.told("judge 300/300 loss 1.0000", 190.0).endswith("1.0000")
    assert left.told("another line 1/2", 190.0) == "another line 1/2"


def test_what_the_training_says_is_passed_on_and_its_status_is_the_programs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Line by line, as it comes."""
    code = "print('judge 1/4 loss 2.0', flush=True); raise SystemExit(3)"
    assert run_told([sys.executable, "-c", code], TimeLeft({"judge": 4})) == 3
    assert capfd.readouterr().out == "judge 1/4 loss 2.0\n"
