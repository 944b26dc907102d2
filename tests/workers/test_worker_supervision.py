"""Python models under the keeper's supervision: stalls, traces, plans, interrupts, forks, devices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from backends.footprint.inspect import Inspector
from backends.machine.devices import Device
from budget.errors import ConfigError
from budget.footprint import HOST
from shim import Config, EngineTimeout, Shim
from shim.keeper.catalog.worker_models import prepare_worker
from shim.placement.budgeted_devices import BudgetDevices
from tests.processes import wait_until
from tests.shim.test_traced_runs import line_of
from tests.workers.conftest import Make
from traces import RunTrace


def model(name: str, **more: Any) -> dict[str, Any]:
    """A model of the user's module."""
    return {"factory": f"speech:{name}", "bytes": "64MiB", **more}


def row(shim: Shim, name: str) -> dict[str, Any]:
    """The status row of a model's engine."""
    return next(found for found in shim.status()["engines"] if name in found["models"])


def test_a_stopped_worker_is_replaced(make: Make, folder: Path) -> None:
    """SIGSTOP in a call: its caller gets a typed time-out, and the next call runs in a new process."""
    shim = make({"odd": model("Odd")}, keeper={"stall_timeout": 2})
    shim.load("odd")
    begun = folder / "begun"
    stopped = row(shim, "odd")["pid"]

    async def calls() -> None:
        task = asyncio.create_task(shim.acall("odd", do="holds", path=str(begun)))
        assert await asyncio.to_thread(wait_until, begun.exists)
        os.kill(stopped, signal.SIGSTOP)
        await task

    with pytest.raises(EngineTimeout, match="its process is stopped"):
        asyncio.run(calls())
    assert shim.call("odd", do="prints").value == "printed"
    assert row(shim, "odd")["pid"] != stopped


def test_calls_are_spans_of_a_run_with_the_load_that_they_waited_for(
    make: Make, tmp_path: Path
) -> None:
    """The same trace as for a chat: the operation, the load, and no problem of the viewer's kind."""
    shim = make({"s": model("Stream")})
    with RunTrace(directory=tmp_path) as run:
        shim.call("s", n=1)
        list(shim.stream_call("s", n=2))
    assert run.problems == []
    line = line_of(run)
    assert (line.loads, len(line.requests)) == (1, 2)
    assert [(r.operation, r.engine, r.cold) for r in line.requests] == [
        ("call", "python", True),
        ("call", "python", False),
    ]
    assert run.trace_path is not None
    text = run.trace_path.read_text()
    assert text.count('"name":"work"') == 2
    assert text.count('"name":"items"') == 1
    assert "prompt_evaluation" not in text


def test_a_plan_loads_the_next_python_model_ahead(make: Make) -> None:
    """While one works, the other is started, as any engine is."""
    shim = make({"a": model("Transcriber"), "b": model("Transcriber", options={"name": "b"})})
    with shim.plan(["a", "b"]):
        shim.call("a")
        assert wait_until(lambda: row(shim, "b")["state"] == "idle")
        assert not shim.call("b").residency.cold


def test_two_names_for_the_same_object_share_an_engine(make: Make) -> None:
    """As two names for one GGUF file do; other options make another engine."""
    shim = make(
        {
            "a": model("Transcriber"),
            "b": model("Transcriber", keep_alive="5m"),
            "c": model("Transcriber", options={"name": "c"}),
        }
    )
    assert shim.call("a").residency.cold
    assert not shim.call("b").residency.cold
    assert shim.call("c").residency.cold


class Interrupt(Exception):
    """What a handler of a signal raises."""


def test_an_interrupt_in_a_call_gives_the_lease_back(make: Make, folder: Path) -> None:
    """The wait of a thread ends at once, and the connection is closed."""
    shim = make({"odd": model("Odd")})
    shim.load("odd")
    begun = folder / "begun"

    def raise_it(*_: object) -> None:
        raise Interrupt

    def interrupt() -> None:
        assert wait_until(begun.exists)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Interrupt):
            shim.call("odd", do="holds", path=str(begun))
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert wait_until(lambda: row(shim, "odd")["leases"] == [])


def test_a_forked_caller_does_not_disturb_a_stream_of_its_parent(make: Make) -> None:
    """The child closes nothing of the parent's, and the parent reads on."""
    shim = make({"s": model("Stream")})
    with shim.stream_call("s", n=3) as stream:
        assert next(stream)["i"] == 0
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert [item["i"] for item in stream] == [1, 2]


def devices(*names: str) -> BudgetDevices:
    """Budgeted GPUs beside a host."""
    gpus = tuple(
        Device(name, "cuda", 8 << 30, 8 << 30, f"GPU-{name[-1]}", "a GPU") for name in names
    )
    limits = {HOST: 16 << 30, **dict.fromkeys(names, 8 << 30)}
    return BudgetDevices(gpus, limits, dict.fromkeys(limits, 0))


def placed(folder: Path, **more: Any) -> list[dict[str, int]]:
    """The bookings of a model's placements on two GPUs."""
    config = Config.from_mapping({"models": {"m": model("Transcriber", **more)}}, base=folder)
    entry = config.models["m"]
    found = prepare_worker("m", entry, devices("cuda:0", "cuda:1"), Inspector(build="x"))
    return [dict(placement.bookings) for placement in found.placements]


def test_a_model_may_go_to_any_budgeted_gpu_with_a_share_of_the_host(folder: Path) -> None:
    """Each GPU is as good as the other; the process beside it takes some of the host."""
    own, beside = 64 << 20, 64 << 20
    assert placed(folder) == [{"cuda:0": own, HOST: beside}, {"cuda:1": own, HOST: beside}]
    assert placed(folder, device="cuda:1") == [{"cuda:1": own, HOST: beside}]
    assert placed(folder, device="GPU-0") == [{"cuda:0": own, HOST: beside}]
    assert placed(folder, device="host") == [{HOST: own}]


def test_a_device_that_is_not_budgeted_is_named(folder: Path) -> None:
    """With those that are."""
    with pytest.raises(ConfigError, match=r"device is 'cuda:7'; budgeted are cuda:0, cuda:1"):
        placed(folder, device="cuda:7")


@pytest.mark.full
def test_the_example_runs_from_any_folder(tmp_path: Path) -> None:
    """What the page points to."""
    example = Path(__file__).parents[2] / "examples" / "own_model.py"
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 pieces")
