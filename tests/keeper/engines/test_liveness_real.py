"""Real engines that hang, spin, grow without end or vanish: callers get errors, others are served."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.engine_process.ceiling import Ceilings
from shim import EngineTimeout, OutOfMemory, Shim
from tests.engines.templates import GROWS, SPINS, SPINS_AT_LOAD, with_template
from tests.processes import alive, wait_until

pytestmark = pytest.mark.real

Files = dict[str, Path]
QUIET: dict[str, Any] = {"max_tokens": 2, "temperature": 0.0}
ENDLESS: dict[str, Any] = {"max_tokens": 1_000_000_000, "extra": {"ignore_eos": True}}
STALL_S = 2.0
PATIENT: dict[str, Any] = {"stall_timeout": 60.0}
"""For engines that get on, perhaps slowly on a busy machine, until another thing ends them."""


@contextmanager
def keeper(files: Files, *, fit: int = 1, template: str = "", **section: Any) -> Iterator[Shim]:
    """A keeper in this process with models `a` and `b`, of which so many fit at a time."""
    names = (("a", "producer"), ("b", "classifier"))
    models: dict[str, Any] = {
        name: {"path": str(files[file]), "context": 4096, "threads": 1} for name, file in names
    }
    # An endless answer has no natural end, however quick the machine is.
    models["a"]["engine_args"] = ["--context-shift", *(with_template(template) if template else ())]
    config = {
        "budget": {"device": "host", "limit": fit * 60_000_000, "reserve": 0},
        "models": models,
        "kv": {"enabled": False},
        "keeper": {"stall_timeout": STALL_S, **section},
    }
    with Shim(config) as made:
        yield made
        status = made.status()
        assert status["queue"] == []
        assert not any(row["leases"] for row in status["engines"])


def row_of(made: Shim, model: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    found: dict[str, Any] = next(e for e in made.status()["engines"] if model in e["models"])
    return found


def pid_of(made: Shim, model: str) -> int:
    """The process of a model's engine."""
    return int(row_of(made, model)["pid"] or 0)


def test_a_stopped_engine_is_replaced_and_the_waiting_model_is_served(tiny_models: Files) -> None:
    """SIGSTOP in mid-answer: the caller hears what was seen, and the bytes are the next model's."""
    with keeper(tiny_models) as made, ThreadPoolExecutor(1) as pool:
        stream = made.stream("a", "Go on.", **ENDLESS)
        next(stream)
        stopped = pid_of(made, "a")
        waiting = pool.submit(made.chat, "b", "Hi.", **QUIET)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(EngineTimeout) as caught:
            for _ in stream:
                pass
        assert caught.value.facts["seen"] == "stopped"
        assert waiting.result(60).model == "b"
        assert not alive(stopped)
        assert made.chat("a", "Hi.", **QUIET).model == "a"


def test_an_endless_chat_template_holds_nobody(tiny_models: Files) -> None:
    """No slot works, the process does: its caller hears that, and the waiting model is served."""
    with keeper(tiny_models, template=SPINS) as made, ThreadPoolExecutor(1) as pool:
        assert made.chat("a", "Hi.", **QUIET).model == "a"
        spinning = pool.submit(made.chat, "a", "go", **QUIET)
        engine = psutil.Process(pid_of(made, "a"))
        used = engine.cpu_times().user
        assert wait_until(lambda: engine.cpu_times().user > used + 0.05)
        assert made.chat("b", "Hi.", **QUIET).model == "b"
        with pytest.raises(EngineTimeout) as caught:
            spinning.result(60)
        assert caught.value.facts["seen"] == "spinning"


def test_an_engine_that_spins_after_its_caller_has_gone_is_ended(tiny_models: Files) -> None:
    """Its lease is back with its client's connection; the process would compute for hours."""
    with keeper(tiny_models, template=SPINS) as made:
        line = made._session.connections.new()
        held = line.ask("lease", model="a", want="lease")
        pid = pid_of(made, "a")
        _send_and_leave(held["endpoint"]["socket_path"])
        line.close()
        assert wait_until(lambda: not alive(pid))


def _send_and_leave(socket_path: str) -> None:
    """A request of a caller that does not wait for its answer."""
    body = json.dumps({"messages": [{"role": "user", "content": "go"}]})
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(socket_path)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    connection.close()


def test_a_template_that_hangs_the_load_fails_it(tiny_models: Files) -> None:
    """llama-server tries a template out while it loads."""
    with keeper(tiny_models, template=SPINS_AT_LOAD) as made:
        with pytest.raises(EngineTimeout, match="made no progress"):
            made.chat("a", "Hi.", **QUIET)
        assert made.chat("b", "Hi.", **QUIET).model == "b"


def test_an_engine_that_grows_without_end_is_ended_by_the_looks(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with a GPU, where the kernel does not hold it; the other engine is untouched."""
    monkeypatch.setattr(Ceilings, "bound_growth", lambda _self, _pid: None)
    monkeypatch.setattr(Ceilings, "bound_load", lambda _self, _pid, _args, _threads: None)
    with keeper(tiny_models, fit=4, template=GROWS, engine_margin="128MiB", **PATIENT) as made:
        made.chat("b", "Hi.", **QUIET)
        other = pid_of(made, "b")
        with pytest.raises(OutOfMemory) as caught:
            made.chat("a", "go", **QUIET)
        named = [caught.value.facts[f"{n}_bytes"] for n in ("booked", "ceiling", "found")]
        figures = [figure for figure in named if isinstance(figure, int)]
        assert len(set(figures)) == 3
        assert figures == sorted(figures)
        assert made.chat("a", "Hi.", **QUIET).model == "a"
        assert pid_of(made, "b") == other


def test_an_engine_that_the_kernel_holds_fails_the_one_request(tiny_models: Files) -> None:
    """The allocation is refused, or a look ends the engine first; the model is served after it."""
    with keeper(tiny_models, template=GROWS, engine_margin="64MiB", **PATIENT) as made:
        made.chat("a", "Hi.", **QUIET)
        with pytest.raises(OutOfMemory):
            made.chat("a", "go", **QUIET)

        def is_served() -> bool:
            with contextlib.suppress(OutOfMemory):
                return made.chat("a", "Hi.", **QUIET).model == "a"
            return False

        assert wait_until(is_served)


def test_an_engine_whose_socket_was_deleted_is_replaced(tiny_models: Files) -> None:
    """Without a client's report, within two looks; the next request is served."""
    with keeper(tiny_models) as made:
        made.chat("a", "Hi.", **QUIET)
        pid = pid_of(made, "a")
        _delete_sockets(made)
        assert wait_until(lambda: not alive(pid))
        # A request in the moment between would get the error of the death.
        assert wait_until(lambda: row_of(made, "a")["state"] == "failed")
        assert made.chat("a", "Hi.", **QUIET).model == "a"


def test_a_client_that_finds_no_socket_has_the_engine_replaced(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its report is enough: no look comes here. Its request never reached the engine, and is sent anew."""
    monkeypatch.setattr("shim.keeper.engines.liveness.LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr("shim.keeper.engines.liveness.LOOKS_A_STALL", 1e-6)
    with keeper(tiny_models) as made:
        made.chat("a", "Hi.", **QUIET)
        pid = pid_of(made, "a")
        _delete_sockets(made)
        made._session.sync_transport.close()
        reply = made.chat("a", "Hi.", **QUIET)
        assert (reply.retried, reply.residency.cold) == (1, True)
        assert wait_until(lambda: not alive(pid))
        assert "cannot be reached" in caplog.text


def _delete_sockets(made: Shim) -> None:
    """What a cleaner of temporary files does."""
    runtime = Path(made.status()["keeper"]["runtime"])
    for file in runtime.glob("e-*.sock"):
        file.unlink()
