"""`keepwarm simulate`: its JSON, its table, its picture, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from budget.simulation import replay
from shim.cli import main
from shim.cli.console.output import StatusLine
from tools import workloads

FIGURES = {
    *("loads", "load_seconds", "hidden_load_seconds", "evictions"),
    *("wait_p50_s", "wait_p95_s", "wait_p99_s", "wait_max_s"),
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A generated trace and its models."""
    trace, models = tmp_path / "t.csv", tmp_path / "m.json"
    lines = ["arrival_s,model,prompt_tokens,output_tokens"]
    lines += [",".join(map(str, row)) for row in workloads.rows("revise", 1, 300)]
    trace.write_text("\n".join(lines) + "\n", encoding="utf-8")
    models.write_text(json.dumps(workloads.models("revise")), encoding="utf-8")
    return str(trace), str(models)


def simulate(files: tuple[str, str], *more: str) -> Result:
    """The command on a trace and its models."""
    words = ["simulate", "--trace", files[0], "--models", files[1], "--budget", "28GB", *more]
    return CliRunner().invoke(main, words)


def test_the_json_has_the_documented_keys_and_no_other(files: tuple[str, str]) -> None:
    """Programs read it."""
    found = json.loads(simulate(files, "--policy", "lru,forecast,belady", "--json").stdout)
    assert set(found) == {"trace", "requests", "budget_bytes", "policies", "optimum"}
    assert (found["trace"], found["requests"], found["budget_bytes"]) == (files[0], 300, 28 * 10**9)
    assert list(found["policies"]) == ["lru", "forecast", "belady"]
    assert all(set(figures) == FIGURES for figures in found["policies"].values())
    assert found["optimum"]["exact"] is True
    assert found["policies"]["lru"]["load_seconds"] >= found["optimum"]["load_seconds"] > 0.0


def test_the_table_labels_a_bound_as_a_bound(files: tuple[str, str]) -> None:
    """On several devices the optimum is not known."""
    shown = simulate(files, "--devices", "2").stdout
    assert "lower bound" in shown
    assert "by relaxation" in shown
    assert "optimum" in simulate(files).stdout.splitlines()[0]


def test_the_optimum_is_left_out_where_nobody_wants_it(
    files: tuple[str, str], tmp_path: Path
) -> None:
    """A million requests take long enough; table, JSON and picture do without."""
    found = json.loads(simulate(files, "--no-optimum", "--json").stdout)
    assert found["optimum"] is None
    assert found["policies"]["lru"]["loads"] > 0
    picture = tmp_path / "p.png"
    shown = simulate(files, "--no-optimum", "--plot", str(picture))
    assert shown.exit_code == 0, shown.output
    assert "optimum" not in shown.stdout.splitlines()[0]
    assert picture.exists()


def test_models_may_be_toml_and_traces_runs(files: tuple[str, str], tmp_path: Path) -> None:
    """One's own runs can be replayed."""
    models, runs = tmp_path / "m.toml", tmp_path / "runs.jsonl"
    models.write_text(
        '[[models]]\nname = "a"\nbytes = 5\nload_fixed_s = 1\nload_bandwidth_bytes_per_s = 5.0\n',
        encoding="utf-8",
    )
    request = {"model": "a", "arrival_s": 0.5, "prompt_tokens": 3, "output_tokens": 4}
    line = {"started": "2026-11-21T13:45:01+00:00", "requests": [request, request]}
    runs.write_text(json.dumps(line) + "\n", encoding="utf-8")
    found = json.loads(simulate((str(runs), str(models)), "--json").stdout)
    assert found["requests"] == 2
    assert found["policies"]["forecast"]["load_seconds"] == 2.0


def test_the_picture_is_a_png(files: tuple[str, str], tmp_path: Path) -> None:
    """A band for each model and the comparison."""
    picture = tmp_path / "o.png"
    assert simulate(files, "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_picture_that_cannot_be_written_is_said_before_the_replay(
    files: tuple[str, str], tmp_path: Path
) -> None:
    """Its folder is made; where a file is in the way, that is the caller's mistake."""
    assert simulate(files, "--plot", str(tmp_path / "new" / "o.png")).exit_code == 0
    (tmp_path / "file").write_text("")
    failed = simulate(files, "--plot", str(tmp_path / "file" / "o.png"))
    assert failed.exit_code == 2
    assert "cannot be written" in failed.stderr


def test_without_matplotlib_the_error_says_what_to_install(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is optional."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(
        "shim.cli.commands.simulate.command.compare", None
    )  # said before the replay
    failed = simulate(files, "--plot", str(tmp_path / "o.png"))
    assert failed.exit_code == 2
    assert "keepwarm[plot]" in failed.stderr


@pytest.mark.parametrize("words", [("--policy", "newest"), ("--budget", "50%"), ("--budget", "0")])
def test_what_cannot_be_is_the_callers_mistake(
    files: tuple[str, str], words: tuple[str, ...]
) -> None:
    """Exit code 2, and no figures."""
    failed = simulate(files, *words)
    assert failed.exit_code == 2
    assert "error" in failed.stderr


def test_requests_for_other_models_are_left_out_and_counted(
    files: tuple[str, str], tmp_path: Path
) -> None:
    """A trace may hold more models than one wants to simulate; nothing is dropped silently."""
    few = workloads.models("revise")["models"][:2]
    models = tmp_path / "few.json"
    models.write_text(json.dumps({"models": few}), encoding="utf-8")
    done = simulate((files[0], str(models)), "--json")
    assert 0 < json.loads(done.stdout)["requests"] < 300
    assert "of 300 requests are for 3 models" in done.stderr
    models.write_text(json.dumps(workloads.models("voice")), encoding="utf-8")
    alone = json.loads(models.read_text(encoding="utf-8"))["models"][:1]
    models.write_text(json.dumps({"models": alone}), encoding="utf-8")
    assert simulate((files[0], str(models))).exit_code == 2


def test_declared_uses_come_close_to_the_optimum(files: tuple[str, str]) -> None:
    """--declare reaches the policy."""
    found = json.loads(simulate(files, "--declare", "100", "--json").stdout)
    known = found["policies"]["forecast"]["load_seconds"]
    assert known <= 1.05 * found["optimum"]["load_seconds"]


HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ("", "names no column arrival_s, model"),
        (HEADER.replace(",", ";") + "1;producer;1;1\n", "names no column arrival_s, model"),
        (HEADER + "x,producer,1,1\n", "row 1: arrival_s is 'x'"),
        (HEADER + "inf,producer,1,1\n", "row 1: arrival_s is 'inf'"),
        (HEADER + "1,producer,1,1\n1,producer,1.5,1\n", "row 2: prompt_tokens is '1.5'"),
        (HEADER + "1,producer,1,-2\n", "row 1: output_tokens is '-2'"),
        (HEADER + f"1,producer,{'9' * 400},1\n", "row 1: prompt_tokens is '999"),
    ],
)
def test_a_bad_trace_is_reported_by_row_and_column(
    files: tuple[str, str], tmp_path: Path, trace: str, said: str
) -> None:
    """The caller's mistake, in words that say where it is; never a traceback."""
    path = tmp_path / "bad.csv"
    path.write_text(trace, encoding="utf-8")
    failed = simulate((str(path), files[1]))
    assert failed.exit_code == 2, failed.stderr
    assert said in failed.stderr


@pytest.mark.parametrize("ending", ["json", "toml", "jsonl"])
def test_files_that_are_nested_too_deeply_are_the_callers_mistake(
    files: tuple[str, str], tmp_path: Path, ending: str
) -> None:
    """Reported in words, never by a traceback."""
    path = tmp_path / f"deep.{ending}"
    path.write_text(("a = " if ending == "toml" else "") + "[" * 5000)
    given = (str(path), files[1]) if ending == "jsonl" else (files[0], str(path))
    failed = simulate(given)
    assert failed.exit_code == 2, failed.stderr
    assert "deep" in failed.stderr


def test_a_trace_saved_by_a_spreadsheet_is_read(files: tuple[str, str], tmp_path: Path) -> None:
    """Such files begin with a byte order mark."""
    path = tmp_path / "marked.csv"
    path.write_text(HEADER + "1,producer,1,1\n", encoding="utf-8-sig")
    assert json.loads(simulate((str(path), files[1]), "--json").stdout)["requests"] == 1


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "at least one model"),
        (3, "at least one model"),
        ([{"bytes": 10**400}], "bytes is 1000"),
        ([{"load_fixed_s": 10**400}], "load_fixed_s is 1000"),
        ([{"load_bandwidth_bytes_per_s": 0}], "load_bandwidth_bytes_per_s is 0"),
        ([{}] * 5001, "producer is named twice"),
    ],
)
def test_bad_models_are_reported_by_key(
    files: tuple[str, str], tmp_path: Path, models: Any, said: str
) -> None:
    """However large a number is and however many there are."""
    usual = {"name": "producer", "bytes": 5, "load_fixed_s": 1, "load_bandwidth_bytes_per_s": 5}
    if isinstance(models, list):
        models = [{**usual, **given} for given in models]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"models": models}), encoding="utf-8")
    failed = simulate((files[0], str(path)))
    assert failed.exit_code == 2, failed.stderr
    assert said in failed.stderr


def test_requests_that_never_fit_are_said_beside_the_json(files: tuple[str, str]) -> None:
    """Its keys have no place for them, and figures without them look better than they are."""
    done = simulate(files, "--budget", "10GB", "--json")
    assert done.exit_code == 0
    assert "larger than a device: producer; they are denied" in done.stderr
    assert "denied" not in simulate(files, "--json").stderr


def test_a_terminal_shows_how_far_a_replay_is(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million requests take minutes."""
    shown: list[str] = []
    monkeypatch.setattr(StatusLine, "show", lambda _line, text, _share: shown.append(text))
    monkeypatch.setattr(replay, "TELL_EVERY", 100)
    simulate(files, "--policy", "lru")
    assert shown == [
        "simulating lru",
        "simulating lru: 100 of 300 requests (33%)",
        "simulating lru: 200 of 300 requests (67%)",
        "simulating the optimum",
    ]
