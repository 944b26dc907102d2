"""`keepwarm` as a process, on real llama.cpp."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import ENDLESS, LIMIT_S, CommandPlace
from tests.processes import alive, wait_until

pytestmark = pytest.mark.real

SHORT = ("--max-tokens", "4", "--temperature", "0", "--seed", "1")


def test_of_two_chats_in_a_row_the_second_is_warm(place: CommandPlace) -> None:
    """Two separate processes; the keeper that the first started holds the model for the second."""
    answer = [place.process("chat", "writer", "Hello", *SHORT, "--json") for _ in range(2)]
    assert [done.returncode for done in answer] == [0, 0], answer
    first, second = (json.loads(done.stdout) for done in answer)
    assert first["residency"]["cold"]
    assert first["residency"]["load_s"] > 0
    assert not second["residency"]["cold"]
    assert second["residency"]["load_s"] == 0
    assert second["residency"]["engine"] == first["residency"]["engine"]
    assert second["usage"]["completion_tokens"] == 4
    engine = place.engine("writer")
    assert engine["uses"] == 2
    assert engine["leases"] == []


def test_chat_prints_the_same_answer_streamed_whole_and_as_json(shared: CommandPlace) -> None:
    """From the command line or stdin, and with nothing on stdout but the answer."""
    streamed = shared.run("chat", "writer", "Hello", *SHORT)
    whole = shared.run("chat", "writer", *SHORT, "--no-stream", stdin="Hello\n")
    dash = shared.run("chat", "writer", "-", *SHORT, stdin="Hello")
    answer = shared.json("chat", "writer", "Hello", *SHORT)
    assert streamed.exit_code == whole.exit_code == 0, streamed.stderr + whole.stderr
    assert streamed.stdout == whole.stdout == dash.stdout == answer["content"] + "\n"
    assert streamed.stderr == ""
    systemic = shared.json("chat", "writer", "Hello", "--system", "Be brief.", *SHORT)
    assert systemic["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


def test_ctrl_c_stops_generation_gives_the_lease_back_and_exits_130(shared: CommandPlace) -> None:
    """The tokens so far stay on stdout; the model is idle again."""
    process = shared.start("chat", "writer", "Hello", *ENDLESS)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    assert rest.endswith(b"\n")
    assert errors == b""
    assert wait_until(lambda: shared.engine("writer")["state"] == "idle")


def test_a_terminal_shows_what_is_waited_for_and_how_it_went(shared: CommandPlace) -> None:
    """On stderr alone; stdout is the answer."""
    shared.run("unload", "writer")
    ours, theirs = pty.openpty()
    process = shared.start("chat", "writer", "Hello", *SHORT, stderr=theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], LIMIT_S)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert b"\x1b" not in out
    last = shown.decode().splitlines()[-1]
    assert "writer · cold, loaded in" in last
    assert "4 tokens" in last
    assert "tokens/s" in last


def test_embed_gives_one_vector_per_text(shared: CommandPlace) -> None:
    """From arguments, and from the lines of stdin."""
    given = shared.json("embed", "vec", "one", "two")
    assert len(given["vectors"]) == 2
    assert {len(vector) for vector in given["vectors"]} == {256}
    text = "one\n\ntwo\u2028and\r\n"
    piped = shared.run("embed", "vec", stdin=text)
    assert [line.split()[:1] for line in piped.stdout.splitlines()[1:]][:2] == [["one"], []]
    aligned = shared.run("embed", "vec", "--json", stdin=text)
    assert [vector and len(vector) for vector in json.loads(aligned.stdout)["vectors"]] == [
        256,
        None,
        256,
    ]


def test_chat_ends_at_a_stop_text_and_follows_a_schema(shared: CommandPlace) -> None:
    """Both options reach the engine."""
    whole = shared.json("chat", "writer", "Hello", *SHORT)["content"]
    stopped = shared.json("chat", "writer", "Hello", *SHORT, "--stop", "never", "--stop", whole[1:])
    assert stopped["content"] == whole[:1]
    schema = shared.root / "schema.json"
    schema.write_text('{"enum": ["yes"]}')
    args = ("chat", "writer", "Hello", "--json-schema", str(schema))
    assert json.loads(shared.json(*args)["content"]) == "yes"
    schema.write_text("[]")
    assert shared.json(*args, code=2)["error"]["error"] == "InvalidRequest"


def test_models_come_stay_and_go_by_the_commands(shared: CommandPlace) -> None:
    """load, pin, unload of a pinned one (refused with 3), unpin, release, unload."""
    assert shared.json("load", "writer")["resident"]
    assert shared.json("pin", "writer")["pinned"]
    assert shared.engine("writer")["pinned_by"] == ["writer"]
    refused = shared.json("unload", "writer", code=3)
    assert refused["error"]["error"] == "AdmissionDenied"
    assert shared.json("unpin", "writer") == {"model": "writer", "told": True}
    assert shared.json("release", "writer") == {"model": "writer", "told": True}
    assert shared.json("unload", "writer") == {"model": "writer", "gone": True}
    assert shared.engine("writer")["state"] == "absent"
    again = shared.json("load", "writer")
    assert again["cold"]
    assert again["bytes"] > 0


def test_ps_tells_people_about_engines_and_decisions(
    place: CommandPlace, models: dict[str, dict[str, Any]]
) -> None:
    """One line per engine, uncut in a pipe, and why bytes changed hands."""
    # A keeper of its own: what another one learned of these models may make room for both.
    place.configure(models, budget={"limit": "60MiB"})
    place.json("load", "writer")
    assert place.json("load", "vec")["evicted"] == ["writer"]
    text = place.run("ps").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "idle" in rows["vec"]
    assert "absent" in rows["writer"]
    assert "yes" in rows["judge"]
    assert "lost cannot be run: The file of lost is not there" in text
    assert any({"requested", "writer"} <= set(line.split()) for line in text.splitlines())


def test_ps_watch_prints_one_object_a_line_until_interrupted(shared: CommandPlace) -> None:
    """`ps --watch --json` is for programs that follow."""
    process = shared.start("ps", "--watch", "--json")
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert [status["running"] for status in seen] == [True, True]


def test_the_keeper_starts_stays_alone_and_stops(place: CommandPlace) -> None:
    """A second start leaves the first alone; stop returns when it and its engines are gone."""
    assert not place.json("keeper", "status")["running"]
    assert place.json("keeper", "stop") == {"stopped": False, "pid": None}
    first = place.json("keeper", "start")
    second = place.json("keeper", "start")
    assert (first["started"], second["started"]) == (True, False)
    assert first["pid"] == second["pid"] == place.json("keeper", "status")["pid"]
    assert "ready on" in place.run("keeper", "log", "-n", "100").stdout
    assert place.json("keeper", "stop") == {"stopped": True, "pid": first["pid"]}
    assert not alive(first["pid"])
    assert not place.json("ps")["running"]


def test_keeper_log_follows_what_is_added(place: CommandPlace) -> None:
    """Lines that come later are printed as they come."""
    # A keeper of its own has not logged the same before; a repeated line is logged once in 10 s.
    place.json("load", "writer")
    process = place.start("keeper", "log", "--follow", "-n", "1")
    assert process.stdout is not None
    process.stdout.readline()
    place.json("unload", "writer")
    while b"unloading writer" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130


def test_reload_keeps_unchanged_models_warm(place: CommandPlace, models: dict[str, Any]) -> None:
    """Only the changed model is reported as changed; the writer is the same process afterwards."""
    place.json("load", "writer")
    before = place.engine("writer")["pid"]
    place.configure({**models, "vec": {**models["vec"], "context": 256}})
    answer = place.json("config", "reload")
    assert answer["changed"] == ["vec"]
    assert "writer" in answer["unchanged"]
    assert place.engine("writer")["pid"] == before


def test_errors_exit_by_fault_and_tell_programs(shared: CommandPlace) -> None:
    """A missing file and an endpoint that does not answer are outside (4)."""
    lost = shared.run("chat", "lost", "Hello", "--json")
    assert lost.exit_code == 4
    assert lost.stderr.startswith("keepwarm: error: The file of lost is not there")
    assert json.loads(lost.stdout)["error"]["error"] == "LoadFailed"
    far = shared.json("chat", "far", "Hello", code=4)
    assert far["error"]["error"] == "EndpointUnavailable"


def test_plan_says_what_fits_without_a_keeper(place: CommandPlace, models: dict[str, Any]) -> None:
    """Pinned first, then in order while it fits; what never fits and what is lost say so."""
    sections = {"budget": {"limit": "60MiB"}}
    place.configure(
        {**models, "big": {**models["writer"], "slots": 8, "context": 65536}}, **sections
    )
    found = place.json("plan")
    totals = {"limit_bytes", "reserved_bytes", "free_bytes"}
    assert set(found) == {"device", "devices", "models", *totals}
    assert found["device"] == "host"
    assert found["limit_bytes"] == 60 * 2**20
    assert found["free_bytes"] == found["limit_bytes"] - found["reserved_bytes"]
    rows = {row["name"]: row for row in found["models"]}
    keys = {"name", "role", "pinned", "n_gpu_layers", "total_bytes", "resident", "reason"}
    keys |= {"kind", "tensor_split", "bytes"}
    assert all(set(row) == keys for row in rows.values())
    assert [name for name, row in rows.items() if row["resident"]] == ["writer", "judge"]
    assert rows["judge"]["pinned"]
    assert found["reserved_bytes"] == sum(rows[n]["total_bytes"] for n in ("writer", "judge"))
    assert "would evict writer" in rows["vec"]["reason"]
    assert rows["big"]["reason"].startswith("never fits: asks for")
    assert "is not there" in rows["lost"]["reason"]
    assert rows["far"]["reason"] == "runs at http://127.0.0.1:9"
    assert not place.json("ps")["running"]


def test_inspect_has_the_documented_keys_and_both_sources_agree(
    shared: CommandPlace, tiny_models: dict[str, Path]
) -> None:
    """The sums add up, and the closed form is near llama.cpp's own measurement."""
    file = str(tiny_models["evaluator"])
    options = ("--context", "1024", "--slots", "2")
    found = {s: shared.json("inspect", file, *options, "--source", s) for s in SOURCES}
    for source, row in found.items():
        assert set(row) == {*INSPECT_KEYS, "learned"}
        assert (row["source"], row["context"], row["slots"]) == (source, 1024, 2)
        assert (row["architecture"], row["n_layers"]) == ("llama", 2)
        (part,) = row["devices"].values()
        assert part["total_bytes"] == sum(part[f"{name}_bytes"] for name in PARTS)
    exact, near = (found[s]["devices"]["host"]["total_bytes"] for s in SOURCES)
    assert near == pytest.approx(exact, rel=0.2)


SOURCES = ("dry-run", "closed-form")
PARTS = ("weights", "kv", "compute", "overhead")
INSPECT_KEYS = {
    "file",
    "architecture",
    "parameters",
    "file_type",
    "context",
    "slots",
    "kv_type",
    "n_gpu_layers",
    "n_layers",
    "tensor_split",
    "devices",
    "source",
}


def test_the_closed_form_needs_no_llama_cpp(
    shared: CommandPlace, tiny_models: dict[str, Path]
) -> None:
    """With llama_cpp not importable, for a GPU that is not here."""
    code = (
        "import sys; sys.modules['llama_cpp'] = None\nfrom shim.cli import main\nmain(sys.argv[1:])"
    )
    arguments = ["inspect", str(tiny_models["producer"]), "--device", "cuda:7", "--json"]
    command = [sys.executable, "-c", code, *arguments, "--source", "closed-form"]
    done = subprocess.run(command, env=shared.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["devices"]) == {"cuda:7", "host"}
    assert found["n_gpu_layers"] == found["n_layers"] + 1


def test_inspect_of_what_is_no_model_is_an_error_with_an_offset(shared: CommandPlace) -> None:
    """Exit code 4, and the offset for programs."""
    file = shared.root / "x.gguf"
    file.write_bytes(b"not a model at all, not even close")
    answer = shared.json("inspect", str(file), code=4)
    assert answer["error"]["error"] == "BadModelFile"
    assert "offset" in answer["error"]["facts"]


def test_a_traced_chat_is_listed_and_has_its_trace(
    place: CommandPlace, models: dict[str, Any]
) -> None:
    """[trace] enabled: a run for the command, with its request and its load."""
    place.configure(models, trace={"enabled": True, "folder": str(place.root / "t")})
    place.json("chat", "writer", "Hello", *SHORT)
    (run,) = place.json("trace", "list")["runs"]
    assert (run["service"], run["status"], run["requests"]) == ("keepwarm chat", "ok", 1)
    assert run["loads"] >= 1
    events = json.loads(Path(run["trace"]).read_text())
    assert events
