"""The main job on real llama.cpp: a budget for half of four models, measured from outside.

It is run from the wheel that people install, away from the repository. One file, so that all share one run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.llama.binaries import FOLDER_VARIABLE
from harness.demo.demo_settings import half_limit_bytes
from harness.demo.models import RECIPES, TINY_RECIPES, Recipe, demo_models, make_model
from harness.demo.report import show, to_json
from harness.demo.stages import cosine
from shim import OutsideError
from shim.cli import main as keepwarm
from tests.demo.conftest import N_REQUESTS, PACKAGES, REPOSITORY, Demo, run
from tests.perfetto import assert_sound

pytestmark = pytest.mark.timeout(600)
"""A demo makes models and measures them: on a busy machine that alone takes minutes."""


def test_the_wheel_holds_every_module_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """All modules, py.typed of each package, the licence, the entry points; no model but trained ones."""
    names = zipfile.ZipFile(wheel).namelist()
    (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    modules = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if not name.startswith(about)} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= modules
    assert {Path(name).suffix for name in modules} <= {
        ".py",
        ".typed",
        ".json",
        ".js",
        ".gguf",
        ".md",
    }
    assert {f"{about}/licenses/LICENSE", f"{about}/entry_points.txt"} <= set(names)


def test_an_installed_wheel_needs_no_repository(installed: Path, tmp_path: Path) -> None:
    """What the runs below import lies beside the installed script."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = "import importlib.util, shim; print(shim.__file__, importlib.util.find_spec('tools'))"
    found, _ = run(installed / "python", "-c", where, cwd=tmp_path, env=env)
    assert found.startswith(str(installed.parent))
    assert found.endswith(" None\n")


@pytest.mark.real
def test_the_demo_runs_from_an_installed_wheel(demo: Demo, models: dict[str, Path]) -> None:
    """In another folder, without the repository: a missing model is made, and the pipeline runs."""
    answer = json.loads(demo.printed)
    assert [row["model"] for row in answer["requests"]] == list(models)
    assert answer["peak_measured_bytes"] <= 1.02 * answer["limit_bytes"]
    assert {row["category"] for row in assert_sound(Path(answer["trace"]))} >= {
        "request",
        "weights",
    }
    made = demo.models / models["classifier"].name
    assert not made.is_symlink()
    assert made.read_bytes() == models["classifier"].read_bytes()


@pytest.mark.real
def test_the_engines_never_take_more_than_the_limit(demo: Demo) -> None:
    """Every 50 ms another process added up their PSS: within 2% of the limit, and near it."""
    measured, limit = demo.report.measured, demo.report.limit_bytes
    assert measured.samples > 20
    assert measured.peak_bytes <= 1.02 * limit
    assert measured.peak_bytes >= 0.80 * limit


@pytest.mark.real
def test_every_warm_engine_takes_what_is_booked_for_it(demo: Demo) -> None:
    """Measured over booked, for each engine process of the run, all of which have answered."""
    booked = demo.report.booked
    ratios = {
        f"{life.model} {life.pid}": round(life.peak_bytes / booked[life.model], 3)
        for life in demo.report.measured.lives
    }
    print(ratios)
    assert {life.model for life in demo.report.measured.lives} == {
        recipe.name for recipe in RECIPES
    }
    assert all(0.95 <= ratio <= 1.02 for ratio in ratios.values()), ratios


@pytest.mark.real
def test_the_limit_holds_about_half_and_makes_models_swap(demo: Demo) -> None:
    """The evaluator stays through all of it; each of the others comes anew for each request."""
    report = demo.report
    assert 0.45 <= report.limit_bytes / sum(report.booked.values()) <= 0.60
    cold = [
        (staged.reply.model, staged.reply.residency.cold)
        for item in report.items
        for staged in item.replies
    ]
    assert cold == N_REQUESTS * [
        ("classifier", True),
        ("embedder", True),
        ("producer", True),
        ("evaluator", False),
    ]
    assert report.loads == 3 * N_REQUESTS + 1
    assert report.evictions == 3 * N_REQUESTS - 1
    assert list(report.books_before["resident"]) == ["evaluator"]
    assert set(report.books_after["resident"]) == {"evaluator", "producer"}


@pytest.mark.real
def test_the_json_is_as_documented(demo: Demo) -> None:
    """Exactly these keys, and figures wherever there are any."""
    found = json.loads(demo.printed)
    assert found == json.loads(json.dumps(to_json(demo.report)))
    assert list(found) == [
        "requests",
        "loads",
        "evictions",
        "limit_bytes",
        "peak_measured_bytes",
        "trace",
        "runs",
    ]
    assert len(found["requests"]) == 4 * N_REQUESTS
    for row in found["requests"]:
        assert list(row) == ["model", "cold", "waited_s", "load_s", "ttft_s", "tokens_per_s"]
        assert (row["load_s"] > 0) == row["cold"]
        assert (row["ttft_s"] is None) == (row["model"] == "embedder")
    assert Path(found["trace"]).is_file()
    assert Path(found["runs"]).is_file()


@pytest.mark.real
def test_the_tables_say_what_people_need(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """Every request, the books, the peak beside the limit, the noise, and how to open the trace."""
    show(demo.report)
    text = capsys.readouterr().out
    assert text.count("classify") == N_REQUESTS
    for words in ("noise", "before", "after", "peak", f"keepwarm trace open {demo.report.trace}"):
        assert words in text
    assert "request 1 of 1 done" in demo.said


@pytest.mark.real
@pytest.mark.parametrize(
    ("reached", "sent", "code"),
    [("loading the pinned", signal.SIGINT, 130), ("making", signal.SIGTERM, 143)],
)
def test_an_interrupted_demo_leaves_nothing(
    tmp_path: Path, models: dict[str, Path], reached: str, sent: signal.Signals, code: int
) -> None:
    """While models load or are made: the exit status says so; no process, folder or half file stays."""
    env = {**os.environ, "TMPDIR": str(short(tmp_path)), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from shim.cli import main; main()", "demo"]
    if reached != "making":
        command += ["--models", str(models["producer"].parent)]
    with subprocess.Popen(
        [*command, "--trace-dir", str(tmp_path / "traces")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=REPOSITORY,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if reached in line:
                break
        os.killpg(process.pid, sent)
        process.stderr.read()
        assert process.wait(60) == code
    assert members(process.pid) == []
    assert list(short(tmp_path).iterdir()) == []
    assert [file for file in tmp_path.rglob("demo-models/*") if file.suffix != ".gguf"] == []


def short(folder: Path) -> Path:
    """A folder for temporary files."""
    place = folder / "t"
    place.mkdir(exist_ok=True)
    return place


def members(group: int) -> list[int]:
    """The processes whose session is that of a command."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found += list(_if_in(group, int(entry.name)))
    return found


def _if_in(session: int, pid: int) -> Iterator[int]:
    try:
        if os.getsid(pid) == session:
            yield pid
    except ProcessLookupError:
        return


def test_only_missing_models_are_made_and_files_of_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own file of a model's name is used as it is; only the other three are made."""
    made: list[str] = []

    def make(recipe: Recipe, target: Path, _progress: object) -> Path:
        made.append(recipe.name)
        return target

    monkeypatch.setattr("harness.demo.models.making.make_model", make)
    own = tmp_path / "producer-Q4_K_M.gguf"
    own.write_text("not made by keepwarm")
    found = demo_models(tmp_path, lambda _line: None)
    assert made == ["classifier", "embedder", "evaluator"]
    assert found["producer"] == own
    assert found["evaluator"] == tmp_path / "evaluator-Q8_0.gguf"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The reason is the operating system's, and the hint says what to give instead."""
    (tmp_path / "file").touch()
    with pytest.raises(OutsideError, match="Not a directory") as caught:
        demo_models(tmp_path / "file" / "models", lambda _line: None)
    assert "--models" in caught.value.hint


def test_a_program_of_llama_cpp_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What llama-quantize printed last comes with the error, and no half-made file stays."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv(FOLDER_VARIABLE, str(program.parent))
    target = tmp_path / "models" / "classifier.gguf"
    with pytest.raises(OutsideError, match="llama-quantize ended with code 3") as caught:
        make_model(TINY_RECIPES[0], target)
    assert caught.value.facts["log_tail"] == ["no room"]
    assert list(target.parent.iterdir()) == []


def test_the_limit_is_for_the_evaluator_and_the_biggest_other() -> None:
    """Never less than a pair that has to be resident together."""
    booked = {"evaluator": 100, "a": 50, "b": 120}
    assert 220 <= half_limit_bytes(booked) <= 230


def test_cosine_of_vectors() -> None:
    """Same direction 1, right angle 0, and no division by zero."""
    assert cosine([1.0, 2.0], [2.0, 4.0]) == pytest.approx(1.0)
    assert cosine([1.0, 0.0], [0.0, 3.0]) == 0.0
    assert cosine([0.0, 0.0], [1.0, 1.0]) == 0.0


def test_the_command_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    """`keepwarm demo --help` comes from the entry point."""
    with pytest.raises(SystemExit) as ended:
        keepwarm(["demo", "--help"])
    assert ended.value.code == 0
    assert "--trace-dir" in capsys.readouterr().out
