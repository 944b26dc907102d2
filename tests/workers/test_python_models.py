"""Python models as callers see them: `shim.call` and its kin over real worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shim import (
    DeadlineExceeded,
    EngineDied,
    InvalidRequest,
    LoadFailed,
    Shim,
    WorkerError,
)
from shim.wire.threads import BlockingConnection
from tests.processes import alive, wait_until
from tests.workers.conftest import Make, started
from tests.workers.models import write_speech


def model(name: str, **more: Any) -> dict[str, Any]:
    """A model of the user's module."""
    return {"factory": f"speech:{name}", "bytes": "64MiB", **more}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """Models that the tests here share, each loaded once until a test ends it."""
    models = {
        "whisper": model("Transcriber"),
        "base": model("Transcriber", options={"name": "base"}),
        "lazy": model("Lazy"),
        "s": model("Stream"),
        "s2": model("Stream", slots=2),
        "odd": model("Odd"),
        "odd2": model("Odd", slots=2),
    }
    with started(models, write_speech(tmp_path_factory.mktemp("shared"))) as shared:
        yield shared


def row(shim: Shim, name: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    return next(found for found in shim.status()["engines"] if name in found["models"])


def leases(shim: Shim, name: str) -> int:
    """How many leases a model's engine has."""
    return len(row(shim, name)["leases"])


def test_a_call_gets_arrays_and_bytes_there_and_back(shim: Shim) -> None:
    """Options make the model; the payload reaches it as it was, and so does its result."""
    audio = np.linspace(-1, 1, 32_000, dtype=np.float32)
    reply = shim.call("base", audio=audio, blob=b"\0raw", language="en", nested={"a": [1, None]})
    assert reply.residency.cold
    assert reply.value.pop("audio").tobytes() == audio.tobytes()
    assert reply.value == {
        "name": "base",
        "blob": b"\0raw",
        "language": "en",
        "nested": {"a": [1, None]},
    }
    assert not shim.call("base").residency.cold
    assert leases(shim, "base") == 0
    assert [past.operation for past in shim.history()] == ["call", "call"]


def test_a_lazy_result_is_made_while_the_lease_is_held(shim: Shim) -> None:
    """faster-whisper's trap: a generator inside of a result works in the worker, not at the caller's."""
    segments, info = shim.call("lazy", n=2).value
    assert [segment["i"] for segment in segments] == [0, 1]
    assert info == {"language": "en"}


def test_a_generator_is_streamed_and_its_end_gives_the_lease_back(shim: Shim, folder: Path) -> None:
    """Items come one by one; closing early closes the generator."""
    stream = shim.stream_call("s", n=2)
    assert [item["samples"].tolist() for item in stream] == [[], [0]]
    assert stream.reply.model == "s"
    assert leases(shim, "s") == 0
    said = folder / "closed"
    gate = folder / "gate"
    with shim.stream_call("s", n=1000, wait=str(gate), said=str(said)) as stream:
        assert next(stream)["i"] == 0
        assert leases(shim, "s") == 1
        assert not said.exists()
    gate.touch()
    assert wait_until(said.exists)
    assert leases(shim, "s") == 0
    assert shim.call("s", n=1).value == [{"i": 0, "samples": pytest.approx([])}]


def test_the_asynchronous_door_does_the_same(shim: Shim) -> None:
    """`acall`, and `astream_call` for `async for`, `async with` and `await`."""

    async def calls() -> list[int]:
        first, second = await asyncio.gather(shim.acall("s2", n=1), shim.acall("s2", n=2))
        found = [len(first.value), len(second.value)]
        found += [item["i"] async for item in shim.astream_call("s2", n=2)]
        async with shim.astream_call("s2", n=5) as stream:
            found.append((await anext(stream))["i"])
        return found

    assert asyncio.run(calls()) == [1, 2, 0, 1, 0]
    assert leases(shim, "s2") == 0


def test_a_result_that_is_no_generator_is_one_item(shim: Shim) -> None:
    """`stream_call` works on every model."""
    assert [item["name"] for item in shim.stream_call("whisper")] == ["tiny"]


@pytest.mark.parametrize(
    ("do", "kind", "words"),
    [
        ("fails", "ValueError", "no such speaker"),
        ("exits", "SystemExit", "3"),
        ("object", "Unsendable", r"the result\.a\[1\] is of type object"),
        ("is_not_there", "AttributeError", "is_not_there"),
        ("breaks_off", "ValueError", "the file ends here"),
    ],
)
def test_an_exception_of_the_models_code_leaves_it_resident(
    shim: Shim, do: str, kind: str, words: str
) -> None:
    """The caller gets the traceback of the user's lines, without ours; the next call is warm."""
    with pytest.raises(WorkerError, match=words) as caught:
        shim.call("odd", do=do)
    assert caught.value.facts["type"] == kind
    traceback = caught.value.facts["traceback"]
    assert isinstance(traceback, str)
    assert "worker.py" not in traceback
    assert kind == "Unsendable" or "speech.py" in traceback
    assert shim.call("odd", do="prints").residency.cold is False


@pytest.mark.parametrize(("do", "tail"), [("dies", "about to die"), ("segfaults", "Segmentation")])
def test_a_death_is_an_error_with_the_log_and_the_next_call_loads_again(
    shim: Shim, do: str, tail: str
) -> None:
    """`os._exit` and a crash in native code end the worker, never the caller or the keeper."""
    with pytest.raises(EngineDied) as caught:
        shim.call("odd", do=do)
    log = caught.value.facts["log_tail"]
    assert isinstance(log, list)
    assert any(tail in str(line) for line in log)
    assert shim.call("odd", do="prints").residency.cold


def test_what_the_code_prints_goes_to_the_log(shim: Shim) -> None:
    """Prints, also binary ones, disturb nothing."""
    assert shim.call("odd", do="prints").value == "printed"
    assert shim.call("odd", do="prints").value == "printed"


def test_prints_reach_no_answer_after_the_code_closed_its_streams(shim: Shim) -> None:
    """A connection must not get the number of a stream; what the code raises is still told."""
    worker = row(shim, "odd")["pid"] if shim.call("odd", do="closes_its_streams") else None
    for _ in range(3):
        with pytest.raises(WorkerError, match="no such speaker"):
            shim.call("odd", do="fails")
    assert row(shim, "odd")["pid"] == worker
    assert shim.unload("odd")


def test_a_forked_child_that_comes_back_answers_nothing(shim: Shim) -> None:
    """The child of the user's `os.fork` ends where our code goes on; the caller gets the parent's value."""
    assert shim.call("odd", do="forks").value == row(shim, "odd")["pid"]
    assert shim.call("odd", do="prints").value == "printed"


def test_leftover_threads_and_children_end_with_the_model(shim: Shim) -> None:
    """Also a child in a session of its own, which no signal to the process group reaches."""
    child = shim.call("odd", do="leaves").value
    worker = row(shim, "odd")["pid"]
    assert alive(child)
    assert shim.unload("odd")
    assert wait_until(lambda: not alive(child) and not alive(worker))


def test_an_evicted_model_may_close_itself(make: Make, folder: Path) -> None:
    """Its `close` is called before the process ends."""
    closed = folder / "closed"
    shim = make({"whisper": model("Transcriber", env={"CLOSED": str(closed)})})
    shim.call("whisper")
    shim.unload("whisper")
    assert closed.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NotThere", "raised RuntimeError: the weights are not there"),
        ("Missing", r"speech\.py has no Missing; it has: Transcriber, Lazy"),
        ("Silent", "a Silent, which cannot be called"),
        ("Dies", "exited with code 9"),
    ],
)
def test_a_factory_that_makes_nothing_fails_the_load(make: Make, name: str, words: str) -> None:
    """Every caller gets the reason with the user's own words; nothing stays booked."""
    shim = make({"bad": model(name)})
    with pytest.raises(LoadFailed, match=words) as caught:
        shim.call("bad")
    assert caught.value.facts["log_tail"] or name == "Dies"
    assert row(shim, "bad")["bytes"] == {}


@pytest.mark.parametrize(
    ("name", "options"), [("Loud", {}), ("Forks", {}), ("Forks", {"fails": True})]
)
def test_a_factory_that_prints_or_forks_makes_its_model(
    make: Make, name: str, options: dict[str, Any]
) -> None:
    """What it prints goes to the log; a child of its fork neither serves nor says anything."""
    shim = make({"odd": model(name, options=options)})
    assert shim.call("odd").value == row(shim, "odd")["pid"]


def test_what_a_factory_leaves_running_ends_with_its_model(make: Make) -> None:
    """Threads that never end, and a child in a session of its own."""
    shim = make({"odd": model("Leaves")})
    child = shim.call("odd").value
    assert alive(child)
    shim.unload("odd")
    assert wait_until(lambda: not alive(child))


def test_options_that_the_factory_does_not_take_are_named(make: Make) -> None:
    """Python's own message is passed on."""
    shim = make({"bad": model("Transcriber", options={"size": 3})})
    with pytest.raises(LoadFailed, match="unexpected keyword argument 'size'"):
        shim.call("bad")


def test_a_module_or_an_interpreter_that_is_not_there_is_named(make: Make) -> None:
    """A spelling mistake in the configuration reads like one."""
    shim = make(
        {
            "nowhere": {"factory": "no_such_module_here:X", "bytes": 1},
            "python": model("Transcriber", python="/nonexistent/python"),
        }
    )
    with pytest.raises(LoadFailed, match="No module named 'no_such_module_here'"):
        shim.call("nowhere")
    with pytest.raises(LoadFailed, match=r"/nonexistent/python"):
        shim.call("python")


def test_a_module_that_is_edited_is_loaded_anew(make: Make, folder: Path) -> None:
    """The next call runs the new code, not the old engine."""
    shim = make({"whisper": model("Transcriber")})
    assert shim.call("whisper").value["name"] == "tiny"
    text = (folder / "speech.py").read_text().replace('name="tiny"', 'name="large"')
    (folder / "speech.py").write_text(text)
    assert wait_until(lambda: bool(shim.call("whisper").value["name"] == "large"))


def test_slots_answer_side_by_side(shim: Shim, folder: Path) -> None:
    """With two slots a call ends that began while another one runs."""
    gate = folder / "gate"

    async def calls() -> list[Any]:
        slow = asyncio.create_task(shim.acall("odd2", do="spins", path=str(gate)))
        quick = await shim.acall("odd2", do="prints")
        gate.touch()
        return [quick.value, (await slow).value]

    assert asyncio.run(calls()) == ["printed", "spun"]


def test_a_deadline_ends_the_call_and_the_slot_waits_for_the_code(shim: Shim, folder: Path) -> None:
    """Python code cannot be stopped in its middle; the next call waits until it is through."""
    shim.load("odd")
    gate = folder / "gate"
    with pytest.raises(DeadlineExceeded):
        shim.call("odd", do="spins", path=str(gate), deadline_s=0.3)
    assert leases(shim, "odd") == 0
    gate.touch()
    assert shim.call("odd", do="prints").value == "printed"


def test_a_call_in_a_worker_that_is_killed_ends(shim: Shim, folder: Path) -> None:
    """SIGKILL from outside while a call runs: a typed error, and no wait."""
    shim.load("odd")
    begun = folder / "begun"

    async def killed() -> None:
        task = asyncio.create_task(shim.acall("odd", do="holds", path=str(begun)))
        assert await asyncio.to_thread(wait_until, begun.exists)
        os.kill(row(shim, "odd")["pid"], signal.SIGKILL)
        await task

    with pytest.raises(EngineDied, match="signal 9"):
        asyncio.run(killed())


def test_closing_the_shim_ends_running_calls(make: Make, folder: Path) -> None:
    """No thread waits for ever for a worker of a session that was closed."""
    shim = make({"odd": model("Odd")}, keeper={"stop_grace": 0.1})
    begun = folder / "begun"

    async def closed() -> None:
        task = asyncio.create_task(shim.acall("odd", do="holds", path=str(begun)))
        assert await asyncio.to_thread(wait_until, begun.exists)
        await asyncio.to_thread(shim.close)
        await task

    with pytest.raises(Exception, match=r"ended while it was needed|closed"):
        asyncio.run(closed())


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.chat("whisper", "Hi."), r"whisper does not chat; it can take call\(\)"),
        (lambda s: s.stream("whisper", "Hi."), "whisper does not chat"),
        (lambda s: s.embed("whisper", "Hi."), "whisper does not embed"),
        (lambda s: s.call("chats", x=1), r"chats does not take call\(\).*that do: whisper\."),
        (lambda s: s.call("far", x=1), r"far does not take call\(\).*that do: whisper\."),
    ],
)
def test_what_a_kind_cannot_do_is_refused_before_anything_is_asked(
    make: Make, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, ask: Any, words: str
) -> None:
    """By name, with the models of this configuration that can."""
    shim = make(
        {
            "whisper": model("Transcriber"),
            "chats": {"path": str(tiny_models["producer"])},
            "far": {"url": "http://127.0.0.1:9/v1"},
        }
    )
    monkeypatch.setattr(BlockingConnection, "ask", lambda *_a, **_k: pytest.fail("it was asked"))
    with pytest.raises(InvalidRequest, match=words):
        ask(shim)


def test_a_payload_that_cannot_be_sent_is_the_callers_mistake(shim: Shim) -> None:
    """It is named by its place, and the model is untouched."""
    with pytest.raises(InvalidRequest, match=r"the payload\.audio is of type object"):
        shim.call("whisper", audio=object())
    assert leases(shim, "whisper") == 0
