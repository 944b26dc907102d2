"""The main job on real llama.cpp: a budget for about half of the models, measured from outside.

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
from harness.demo.demo_run import _line_of, run_demo
from harness.demo.demo_settings import demo_config, half_limit_bytes
from harness.demo.found_models import DemoModels, demo_models
from harness.demo.models import TINY_RECIPES, make_model
from harness.demo.report import show, to_json
from harness.demo.spoken_requests import REQUESTS
from harness.demo.stages import about
from shim import OutsideError
from shim.cli import main as keepwarm
from tests.demo.conftest import (
    N_REQUESTS,
    PACKAGES,
    REPOSITORY,
    STAGES,
    Demo,
    run,
    stand_in,
)
from tests.perfetto import assert_sound
from traces import RunTrace

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
    kinds = {".py", ".typed", ".json", ".gguf", ".md", ".js", ".wav"}
    assert {Path(name).suffix for name in modules} <= kinds
    assert {f"{about}/licenses/LICENSE", f"{about}/entry_points.txt"} <= set(names)


def test_an_installed_wheel_needs_no_repository(installed: Path, tmp_path: Path) -> None:
    """What the runs below import lies beside the installed script."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = "import importlib.util, shim; print(shim.__file__, importlib.util.find_spec('tools'))"
    found, _ = run(installed / "python", "-c", where, cwd=tmp_path, env=env)
    assert found.startswith(str(installed.parent))
    assert found.endswith(" None\n")


@pytest.mark.real
def test_the_demo_runs_from_an_installed_wheel(demo: Demo) -> None:
    """In another folder, without the repository: the trained models are made, and the pipeline runs."""
    answer = json.loads(demo.printed)
    assert [row["model"] for row in answer["requests"]] == [*STAGES.values()]
    assert answer["peak_measured_bytes"] <= 1.02 * answer["limit_bytes"]
    assert {row["category"] for row in assert_sound(Path(answer["trace"]))} >= {
        "request",
        "weights",
    }
    made = {file.name for file in demo.models.glob("report-*.gguf")}
    assert made == {"report-producer-Q4_K_M.gguf", "report-evaluator-Q8_0.gguf"}


@pytest.mark.real
def test_the_engines_never_take_more_than_the_limit(demo: Demo) -> None:
    """Every 50 ms another process added up their PSS: within 2% of the limit, and near it."""
    measured, limit = demo.report.measured, demo.report.limit_bytes
    assert measured.samples > 20
    assert measured.peak_bytes <= 1.02 * limit
    assert measured.peak_bytes >= 0.80 * limit


@pytest.mark.real
def test_every_warm_engine_takes_what_is_booked_for_it(demo: Demo) -> None:
    """Measured over booked, for each engine process of the run: small ones share the pages of llama.cpp."""
    booked = demo.report.booked
    ratios = {
        f"{life.model} {life.pid}": round(life.peak_bytes / booked[life.model], 3)
        for life in demo.report.measured.lives
    }
    print(ratios)
    assert {life.model for life in demo.report.measured.lives} == set(STAGES.values())
    assert all(0.6 <= ratio <= 1.02 for ratio in ratios.values()), ratios
    assert max(ratios.values()) >= 0.95, ratios


@pytest.mark.real
def test_the_limit_holds_about_half_and_makes_models_swap(demo: Demo) -> None:
    """The evaluator stays through all of it; the large model comes when others leave for it."""
    report = demo.report
    assert 0.45 <= report.limit_bytes / sum(report.booked.values()) <= 0.75
    asked = [(one.stage, one.reply.model) for item in report.items for one in item.replies]
    assert asked == N_REQUESTS * list(STAGES.items())
    last = report.items[-1].replies[-1].reply.residency
    assert last.cold
    assert report.loads >= len(STAGES)
    assert report.evictions >= 1
    assert list(report.books_before["resident"]) == ["evaluator"]
    assert {"evaluator", "answerer"} <= set(report.books_after["resident"])


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
    assert len(found["requests"]) == len(STAGES) * N_REQUESTS
    for row in found["requests"]:
        assert list(row) == ["model", "cold", "waited_s", "load_s", "ttft_s", "tokens_per_s"]
        assert (row["load_s"] > 0) == row["cold"]
        assert (row["ttft_s"] is None) == (row["model"] in ("classifier", "embedder"))
    assert Path(found["trace"]).is_file()
    assert Path(found["runs"]).is_file()


@pytest.mark.real
def test_the_tables_say_what_people_need(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """Every request and its answer, the books, the peak beside the limit, and how to open the trace."""
    show(demo.report)
    text = capsys.readouterr().out
    assert text.count("classify") == N_REQUESTS
    for words in (
        REQUESTS[0].question,
        "judged",
        "before",
        "after",
        "peak",
        f"keepwarm trace open {demo.report.trace}",
    ):
        assert words in text
    assert "request 1 of 1 done" in demo.said


@pytest.mark.real
@pytest.mark.parametrize(
    ("reached", "sent", "code"),
    [("loading the pinned", signal.SIGINT, 130), ("measuring", signal.SIGTERM, 143)],
)
def test_an_interrupted_demo_leaves_nothing(
    tmp_path: Path, models: dict[str, Path], reached: str, sent: signal.Signals, code: int
) -> None:
    """While models are measured or load: the exit status says so; no process, folder or half file stays."""
    env = {**os.environ, "TMPDIR": str(short(tmp_path)), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = stand_in(tmp_path / "real", models)
    command = [sys.executable, "-c", "from shim.cli import main; main()", "demo"]
    command += ["--models", str(folder)]
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
    assert [file for file in folder.iterdir() if file.name.startswith(".making")] == []


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


@pytest.mark.real
def test_a_demo_without_the_real_models_runs_with_what_is_there(tmp_path: Path) -> None:
    """Each model that is missing is named, and no stage asks for it; the trained ones are made."""
    said: list[str] = []
    found = demo_models(tmp_path / "models", None, said.append)
    assert set(found.files) == {"producer", "evaluator"}
    assert [line.partition(" is left out")[0] for line in said] == [
        "the ear",
        "the classifier",
        "the embedder",
        "the answerer",
    ]
    assert "make models" in said[1]
    assert set(demo_config(found, "host").models) == {"producer", "evaluator"}


def test_an_ear_needs_an_interpreter_and_hears_on_the_cpu(tmp_path: Path) -> None:
    """Whisper is a Python worker of the interpreter that `--speech` names."""
    files = {name: tmp_path / name for name in ("ear", "producer", "evaluator")}
    ear = demo_config(DemoModels(files, Path(sys.executable)), "host").models["ear"]
    assert ear.factory == "faster-whisper"
    assert ear.python == sys.executable
    assert "ear" not in demo_config(DemoModels(files), "host").models


def test_every_request_has_its_sound_and_its_answer() -> None:
    """A question's file is there, and the sheet's sentence of its kind has the word that is asked for."""
    for request in REQUESTS:
        assert request.sound.read_bytes().startswith(b"RIFF")
        assert request.fact in about(request.sheet, request.kind)
        assert request.sheet.name in request.question
    assert about(REQUESTS[0].sheet, "") == REQUESTS[0].sheet.report()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The reason is the operating system's, and the hint says what to give instead."""
    (tmp_path / "file").touch()
    with pytest.raises(OutsideError, match="Not a directory") as caught:
        demo_models(tmp_path / "file" / "models", None, lambda _line: None)
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
    assert half_limit_bytes({**booked, "c": 115, "d": 115}) == 250


def test_the_command_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    """`keepwarm demo --help` comes from the entry point."""
    with pytest.raises(SystemExit) as ended:
        keepwarm(["demo", "--help"])
    assert ended.value.code == 0
    assert "--trace-dir" in capsys.readouterr().out


def test_a_trace_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    """The folder went while the demo ran."""
    run = RunTrace(directory=tmp_path / "none")
    with pytest.raises(OutsideError, match=r"cannot be kept in .*none: No such file") as caught:
        _line_of(run)
    assert "--trace-dir" in str(caught.value)


def test_a_folder_for_the_trace_that_cannot_be_made_is_said_before_the_work(tmp_path: Path) -> None:
    """A demo that ran for nothing would lose its results."""
    (tmp_path / "file").touch()
    said = list[str]()
    models = DemoModels({})
    with pytest.raises(OutsideError, match=r"cannot be kept in .*runs: Not a directory"):
        run_demo(models, "host", 1, tmp_path / "file" / "runs", said.append)
    assert said == []
