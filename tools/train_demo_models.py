"""Train the demo's producer and evaluator: `nice python tools/train_demo_models.py [--install]`.

The lessons are made here, PyTorch runs in an environment of its own (`.venv-train`) on one thread, and
`--install` puts both F16 files, and the figures of their training, where the demo takes them from. A
killed run goes on from its last checkpoint. From nothing it takes about 45 minutes of one core. `--quick`
goes all the way in minutes, with models that have learned nothing: it shows that every part works here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python  # noqa: E402

if __name__ == "__main__":
    by_own_python()

from tools.setup_run import SetupError, clock, say  # noqa: E402
from tools.side_environment import build  # noqa: E402
from tools.training.lessons import Lesson, examinations, lessons  # noqa: E402

WEIGHTS: Final = ROOT / "harness" / "demo" / "reports" / "weights"
NAMES: Final = ("producer", "evaluator")
SEED: Final = 1
LESSONS: Final = 60_000
STEPS: Final = {
    "together": 2500,
    "producer": 300,
    "evaluator": 3500,
    "examiner": 1200,
    "judge": 800,
}
_STEP: Final = re.compile(r"(?P<part>\w+) (?P<done>\d+)/\d+ loss ")
QUICK_LESSONS: Final = 1500
QUICK_STEPS: Final = 4


def write_lessons(folder: Path, count: int = LESSONS) -> None:
    """Make the data, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "lessons.jsonl", lessons(SEED, count))
    _write(folder / "examinations.jsonl", examinations(SEED + 1, count))


def _write(file: Path, made: Iterator[Lesson]) -> None:
    if file.exists():
        return
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(lesson)) + "\n" for lesson in made)
    part.replace(file)


def install(folder: Path) -> None:
    """Copy the trained files and their figures to where the demo takes them from."""
    WEIGHTS.mkdir(exist_ok=True)
    for name in (*(f"{name}-F16.gguf" for name in NAMES), "training.json"):
        shutil.copyfile(folder / name, WEIGHTS / name)


class TimeLeft:
    """How long the steps that are left take, by the time of those of this run.

    Args:
        steps: of each part, in their order.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self._steps = dict(steps)
        self._first: tuple[int, float] | None = None

    def told(self, line: str, now: float) -> str:
        """A line of progress with the estimate; any other line as it is."""
        found = _STEP.match(line)
        if found is None or found["part"] not in self._steps:
            return line
        done = int(found["done"])
        for part, steps in self._steps.items():
            if part == found["part"]:
                break
            done += steps
        if self._first is None:
            self._first = (done, now)
        began, began_s = self._first
        left = sum(self._steps.values()) - done
        if done == began or not left:
            return line
        return f"{line}, about {clock((now - began_s) / (done - began) * left)} left"


def run_told(command: Sequence[str | Path], left: TimeLeft) -> int:
    """Run the training and pass on what it says, with the time that is left; its status."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as running:
        try:
            for line in running.stdout or ():
                print(left.told(line.rstrip("\n"), time.monotonic()), flush=True)
        except KeyboardInterrupt:
            running.wait()
            say("interrupted; the same command goes on from the last checkpoint")
            return 130
    return running.returncode


def main() -> int:
    """Train in a folder; 0 when both models are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo-training")
    parser.add_argument(
        "--quick", action="store_true", help="few lessons and steps, into another folder"
    )
    parser.add_argument("--install", action="store_true", help="take the models into the demo")
    arguments = parser.parse_args()
    if arguments.quick and arguments.install:
        parser.error("--quick makes models that have learned nothing; they are not installed")
    folder = arguments.folder / "quick" if arguments.quick else arguments.folder
    try:
        python = build("train")
    except SetupError as error:
        say(f"error: {error}")
        return 1
    write_lessons(folder, QUICK_LESSONS if arguments.quick else LESSONS)
    wanted = dict.fromkeys(STEPS, QUICK_STEPS) if arguments.quick else STEPS
    steps = [f"--{name}={count}" for name, count in (wanted | {"seed": SEED}).items()]
    command = [python, ROOT / "tools" / "training" / "torch_run.py", folder, *steps]
    status = run_told(command, TimeLeft(wanted))
    if status == 0 and arguments.install:
        install(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
