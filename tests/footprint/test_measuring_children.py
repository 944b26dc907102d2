"""Children that measure: whatever they do is over in a bounded time, and what comes of it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.footprint import dry_run
from backends.footprint.dry_run import measure, measure_many, measure_projector
from backends.machine import children, processes
from backends.machine.children import ask_child
from backends.machine.environment import child_environment
from backends.measure.decode import DecodeRun, DecodeTimer
from budget.errors import BadModelFile, ConfigError, KeepwarmError, MeasurementFailed
from budget.footprint import HOST, EngineArgs
from tests.processes import alive, wait_until

LONG_S = 60.0
ARGS = EngineArgs(n_ctx=512, devices=(HOST,))

FORKS_AND_HOLDS_THE_PIPES = """
import os, signal, sys
if os.fork() == 0:
    print(os.getpid(), flush=True)
    while True:
        signal.pause()
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
"""
BUFFER = {"buffer_type": "CPU", "device": None, "model": 1, "context": 2, "compute": 3}
ANSWER: dict[str, Any] = {
    "buffers": [BUFFER],
    "output_row_bytes": 4,
    "n_batch": 8,
    "n_layers": 2,
    "n_ctx": 512,
    "n_embd": 64,
    "architecture": "llama",
    "n_predicting": 0,
    "copies": 1,
}


def _python(code: str, timeout_s: float = LONG_S) -> children.Answered:
    return ask_child([sys.executable, "-c", code], child_environment(), timeout_s)


def test_a_child_is_given_its_question_and_its_answer_comes_back() -> None:
    """Standard input of any size, output, log and exit status."""
    code = "import sys; d = sys.stdin.read(); print(len(d)); print('log', file=sys.stderr); sys.exit(7)"
    done = ask_child(
        [sys.executable, "-c", code], child_environment(), LONG_S, given=b"x" * (1 << 20)
    )
    assert (done.code, done.out, done.log, done.cut) == (7, f"{1 << 20}\n", "log\n", "")


def test_a_question_that_finds_no_space_is_a_failed_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on files, or no memory for one, is no error of ours."""

    def full(*_: Any) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr("os.memfd_create", full)
    with pytest.raises(MeasurementFailed, match="File too large"):
        _python("")


def test_a_child_that_does_not_end_is_ended() -> None:
    """What it said until then is there."""
    done = _python("import signal; print('begun', flush=True); signal.pause()", 1.0)
    assert (done.out, done.cut, done.code) == ("begun\n", "time", -9)


def test_a_child_that_closes_its_pipes_and_goes_on_is_ended() -> None:
    """The end of its output is not its end."""
    done = _python("import os, signal; os.close(1); os.close(2); signal.pause()", 1.0)
    assert (done.cut, done.code) == ("time", -9)


def test_what_a_child_has_started_ends_with_it() -> None:
    """A grandchild that holds the pipes open does not delay the caller."""
    done = _python(FORKS_AND_HOLDS_THE_PIPES)
    assert done.code == 0
    assert done.cut == ""
    wait_until(lambda: not alive(int(done.out)), LONG_S)


def test_a_child_that_says_too_much_is_ended() -> None:
    """On its standard output; of a log only the end is kept."""
    done = _python("while True: print('x' * 10000)")
    assert done.cut == "output"
    assert len(done.out) <= children.OUTPUT_LIMIT_BYTES + (1 << 16)
    logs = _python(
        "import sys\nfor i in range(9999): print('x' * 999, file=sys.stderr)\nprint('end', file=sys.stderr)"
    )
    assert len(logs.log) <= children.LOG_KEPT_BYTES
    assert logs.log.endswith("end\n")


def test_a_program_that_cannot_be_started_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bare `OSError`."""
    monkeypatch.setattr(children, "ending_with_us", list)
    with pytest.raises(MeasurementFailed, match="cannot be started: No such file"):
        ask_child(["/nowhere/program"], {}, LONG_S)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Another program in place of the probe."""

    def use(code: str) -> None:
        program = tmp_path / "probe.py"
        program.write_text(code)
        monkeypatch.setattr(dry_run, "_PROBE", (str(program),))

    return use


def _says(answer: object) -> str:
    return f"print({json.dumps(json.dumps(answer))})"


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ANSWER.items() if name != key}


BROKEN: dict[str, str] = {
    "nothing": "",
    "garbage": "print('\\x00garbage')",
    "half": "print('{\"buffers\": [')",
    "deep": "print('[' * 5000 + ']' * 5000)",
    "infinite": "print('1e999')",
    "a long number": "print('9' * 5000)",
    "a text": _says("text"),
    "a list": _says([ANSWER]),
    "null": _says(None),
    "a crash": "import os; os.abort()",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "an unknown status": "raise SystemExit(99)",
    "an exception": "raise RuntimeError('x' * 100000)",
    **{
        f"without {key}": _says(_without(key))
        for key in ("buffers", "n_layers", "output_row_bytes")
    },
    "negative bytes": _says({**ANSWER, "buffers": [{**BUFFER, "model": -1}]}),
    "a fraction of bytes": _says({**ANSWER, "buffers": [{**BUFFER, "compute": 0.5}]}),
    "too many bytes": _says({**ANSWER, "output_row_bytes": 1 << 70}),
    "rows that are none": _says({**ANSWER, "buffers": [7]}),
    "a device of another kind": _says({**ANSWER, "buffers": [{**BUFFER, "device": []}]}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_whatever_the_probe_answers_is_a_failed_measurement(case: str, probe: Any) -> None:
    """Of a model and of a projector; the error is of a bounded size."""
    probe(BROKEN[case])
    for ask in (
        lambda: measure("model.gguf", ARGS),
        lambda: measure_projector("projector.gguf", ARGS),
    ):
        with pytest.raises(MeasurementFailed) as caught:
            ask()
        assert len(str(caught.value.to_wire())) < 10_000


@pytest.mark.parametrize("answer", [[], [ANSWER, ANSWER], ANSWER, [[]], [None], 7])
def test_answers_to_many_questions_are_as_many(answer: object, probe: Any) -> None:
    """None is taken for another."""
    probe(_says(answer))
    with pytest.raises(MeasurementFailed):
        measure_many("model.gguf", [ARGS])


def test_a_good_answer_is_read(probe: Any) -> None:
    """The same program, when it behaves."""
    probe(_says(ANSWER))
    run = measure("model.gguf", ARGS)
    assert (run.n_layers, run.n_ctx, run.buffers[0].kv_bytes) == (2, 512, 2)


def test_a_probe_that_hangs_is_ended(probe: Any) -> None:
    """The message says how long it was waited for."""
    probe("import signal, sys; print('why', file=sys.stderr, flush=True); signal.pause()")
    with pytest.raises(MeasurementFailed, match="more than 1 s") as caught:
        measure("model.gguf", ARGS, timeout_s=1.0)
    assert caught.value.facts["log_tail"] == ["why"]


def test_a_probe_sees_no_secret_of_the_caller(
    probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, and no setting that would change llama.cpp's arguments."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "256")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = tmp_path / "seen.json"
    probe(
        "import json, os, sys\n"
        "open(json.load(sys.stdin)['path'], 'w').write(json.dumps(dict(os.environ)))"
    )
    with pytest.raises(MeasurementFailed):
        measure(seen, ARGS)
    environment = json.loads(seen.read_text())
    assert "CUDA_VISIBLE_DEVICES" in environment
    assert not {"OPENAI_API_KEY", "LLAMA_ARG_CTX_SIZE"} & environment.keys()
    assert "secret" not in environment.values()


SERVE = (
    "import os, sys, time; print(os.getpid(), flush=True); open(sys.argv[1], 'w'); time.sleep(600)"
)


def test_a_server_serves_while_the_block_runs(tmp_path: Path) -> None:
    """It is waited for until it is ready, and gone with the block, with what it said in a file."""
    ready, log = tmp_path / "ready", tmp_path / "log"
    command = [sys.executable, "-c", SERVE, str(ready)]
    with children.serving(command, os.environ, log, ready.exists) as server:
        assert processes.command_line(server.pid) == command
        assert server.ready_s > 0
    assert log.read_text() == f"{server.pid}\n"
    assert processes.user_of(server.pid) is None


@pytest.mark.parametrize(
    ("code", "limit_s", "how"),
    [
        ("print('no such option'); exit(3)", LONG_S, "ended before it was ready"),
        ("import time; print('no such option', flush=True); time.sleep(600)", 0.3, "within 0.3 s"),
    ],
)
def test_a_server_that_is_never_ready_is_an_error_with_its_last_lines(
    tmp_path: Path, code: str, limit_s: float, how: str
) -> None:
    """It ended, or takes too long; nothing of it is left."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", code]

    def is_ready() -> bool:
        return False

    with (
        pytest.raises(MeasurementFailed, match=how) as caught,
        children.serving(command, os.environ, log, is_ready, limit_s),
    ):
        pytest.fail("it served")
    if limit_s == LONG_S:
        assert caught.value.facts["log_tail"] == ["no such option"]
    assert not [pid for pid in processes.all_pids() if processes.command_line(pid) == command]


def test_a_server_that_cannot_be_started_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program is not there, or its log cannot be written."""
    monkeypatch.setattr(children, "ending_with_us", list)
    for command, log in ((["/none"], tmp_path / "log"), (["true"], tmp_path / "none" / "log")):
        with (
            pytest.raises(MeasurementFailed, match="cannot be started"),
            children.serving(command, os.environ, log, lambda: True),
        ):
            pytest.fail("it served")


def test_every_child_that_measures_gets_the_allow_listed_environment() -> None:
    """Programs are started in few places, and each says its environment: a new one is seen here."""
    starts = (
        "subprocess.run(",
        "subprocess.Popen(",
        "create_subprocess_exec(",
        "ask_child(",
        "serving(",
    )
    root = Path(dry_run.__file__).parents[1]
    sources = {path.relative_to(root): path.read_text() for path in root.rglob("*.py")}
    starting = {path for path, text in sources.items() if any(start in text for start in starts)}
    assert starting, "the names of these functions have changed"
    for path in starting - {Path("children.py")}:
        said = ("_environment(", "env=dict(env)", "env={")
        allowed = any(environment in sources[path] for environment in said)
        assert allowed, path
        assert "os.environ}" not in sources[path], path
        assert "**environ" not in sources[path], path


def _llama_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr("backends.measure.decode.find_binary", lambda _: program)


@pytest.mark.parametrize("code", ["print('[' * 5000)", "print('[{}]')", "print('7')", "1 / 0", ""])
def test_whatever_llama_bench_says_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Deep, empty and foreign JSON, and a crash."""
    _llama_bench(tmp_path, monkeypatch, code)
    with pytest.raises(MeasurementFailed):
        DecodeTimer(timeout_s=LONG_S).token_s(DecodeRun(Path("model.gguf")))


def test_a_deviation_that_is_no_number_spoils_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-bench prints `-nan` there, which is no JSON; the samples are all that is used."""
    row = '[{"stddev_ts": -nan, "avg_ts": inf, "samples_ns": [8000, 16000]}]'
    _llama_bench(tmp_path, monkeypatch, f"print({row!r})")
    timer = DecodeTimer(timeout_s=LONG_S)
    assert timer.token_s(DecodeRun(Path("model.gguf"), tokens=8)) == pytest.approx(1e-6)


@pytest.mark.real
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, Path.touch])
def test_llama_cpp_itself_is_not_left_with_what_is_no_model(tmp_path: Path, make: Any) -> None:
    """A FIFO that a dry run would open and wait for is over at the bound, and typed."""
    path = tmp_path / "m.gguf"
    make(path)
    with pytest.raises(KeepwarmError) as caught:
        measure(path, ARGS, timeout_s=1.0)
    assert isinstance(caught.value, BadModelFile | MeasurementFailed | ConfigError)


BUSYBOX = """#!/bin/sh
echo "setpriv: unrecognized option: pdeathsig" >&2
exit 1
"""


@pytest.fixture(params=["setpriv of util-linux", "setpriv of busybox", "no setpriv"])
def programs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PATH of one kind of system."""
    if request.param == "setpriv of util-linux":
        return
    if request.param == "setpriv of busybox":
        (tmp_path / "setpriv").write_text(BUSYBOX)
        (tmp_path / "setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


STARTS_A_CHILD_AND_ENDS = """
import os, subprocess, sys
from backends.machine.children import ending_with_us
said = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
child = subprocess.Popen([*ending_with_us(), sys.executable, "-c", said], stdout=subprocess.PIPE)
print(int(child.stdout.readline()) == child.pid, child.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.usefixtures("programs")
def test_a_child_ends_with_its_parent_on_every_kind_of_system() -> None:
    """Where `setpriv` is missing or knows no death signal, the interpreter sets it."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_CHILD_AND_ENDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        own_number, pid = parent.stdout.readline().split()
        assert own_number == "True"
        assert alive(int(pid))
        parent.kill()
    assert wait_until(lambda: not alive(int(pid)))


def test_a_program_that_is_not_there_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the interpreter starts it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = ask_child(["/nowhere/program"], child_environment(), LONG_S)
    assert done.code != 0
    assert "/nowhere/program cannot be started" in done.log
