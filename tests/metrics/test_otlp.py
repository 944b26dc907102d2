"""Spans and metrics arrive at an OTLP receiver as they were recorded; one that hangs holds nothing up."""

from __future__ import annotations

import importlib
import itertools
import logging
import threading
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry.sdk.metrics.export import MetricsData

from budget.errors import ConfigError
from shim.keeper.metrics import publishing
from shim.keeper.metrics.pushing import FIRST_PAUSE_S, LONGEST_PAUSE_S, Outage, PushedMetrics
from tests.metrics.conftest import Open
from tests.metrics.receiver import Receiver, attributes
from tests.traces.support import load, now, request, written
from traces import RunTrace, names, otlp_exporter
from traces.recording import exporters as exporters_module
from traces.recording.exporter_logs import exporter_logs_heard, why_of

REQUEST = "gen_ai.server.request.duration"


def test_a_runs_spans_arrive_at_a_receiver(tmp_path: Path) -> None:
    """Every span of the trace is there once, under its run, with the version of the conventions."""
    with (
        Receiver() as receiver,
        RunTrace(
            directory=tmp_path, service="letters", exporters=[otlp_exporter(receiver.address)]
        ) as run,
    ):
        run.load(load("l1", now()))
        run.request(request("r1", now()))
        run.__exit__(None, None, None)
        spans = {span.name: (span, resource, scope) for span, resource, scope in receiver.spans()}
    assert {
        "run",
        "request",
        "queue",
        "model_load",
        "prompt_evaluation",
        "generate",
    } <= spans.keys()
    span, resource, scope = spans["request"]
    assert attributes(span)["gen_ai.request.model"] == "m"
    assert attributes(span)["gen_ai.usage.output_tokens"] == 6
    assert attributes(resource.resource)["service.name"] == "letters"
    assert scope.schema_url == names.CONVENTIONS
    assert spans["generate"][0].parent_span_id == span.span_id
    assert run.problems == []


def test_a_receiver_that_hangs_ends_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording goes on at once; at the run's end the exporter is left behind, which the run says."""
    monkeypatch.setattr(exporters_module, "SHUTDOWN_SECONDS", 0.1)
    with Receiver(hangs=True) as receiver:
        with RunTrace(directory=tmp_path, exporters=[otlp_exporter(receiver.address)]) as run:
            run.request(request("r1", now()))
        assert receiver.asked.wait(60), "the exporter asked the receiver"
    assert ["exporters" in problem for problem in run.problems] == [True]
    assert run.trace_path is not None
    assert run.trace_path.exists()


GARBAGE = (
    b"\0" * 5000,
    b"HTTP/1.1 500 No\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
)


@pytest.mark.parametrize("says", [None, *GARBAGE], ids=("refuses", "nuls", "error", "cut"))
def test_a_receiver_that_refuses_or_answers_garbage_costs_a_run_its_spans_there_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    says: bytes | None,
) -> None:
    """The run ends in its time, its file is whole, and it says which exporter did not take them."""
    monkeypatch.setattr(exporters_module, "SHUTDOWN_SECONDS", 0.5)
    with Receiver(says=says) as receiver:
        address = receiver.address if says is not None else "http://127.0.0.1:9"
        with RunTrace(directory=tmp_path, exporters=[otlp_exporter(address)]) as run:
            run.request(request("r1", now()))
    assert run.trace_path is not None
    assert written(run.trace_path)["request"] == 1
    assert ["exporter" in problem for problem in run.problems] == [True]
    # At the end of a run what it could not send is said in the run's problems alone.
    assert [record.name for record in caplog.records] == ["keepwarm.traces"]


@pytest.mark.parametrize("says", GARBAGE, ids=("nuls", "error", "cut"))
def test_a_collector_that_answers_garbage_costs_the_keeper_nothing(
    watched: Open, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    """Requests go on, Prometheus reads the same figures, and the keeper ends."""
    monkeypatch.setattr(publishing, "CLOSE_LIMIT_S", 0.1)
    monkeypatch.setattr(publishing, "SHORTEST_S", 0.01)
    with Receiver(says=says) as receiver:
        it = watched()
        place = {"prometheus": str(it.place), "otlp": receiver.address, "interval": 0}
        it.shim.close()
        it = watched(metrics=place)
        assert it.chat("a") == "one two three"
        assert receiver.asked.wait(60), "the exporter sent something"
        assert it.scrape().of("gen_ai_server_request_duration_seconds_count") == 1
        it.shim.close()


def test_a_collector_that_is_gone_is_said_once_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With `interval = 1` each push was a line of OpenTelemetry's or more, for as long as it was gone."""
    nothing = MetricsData([])
    with Receiver(says=GARBAGE[1]) as receiver:
        pushed = PushedMetrics(receiver.address)
        for _ in range(5):
            pushed.export(nothing)
        receiver.says = None
        for _ in range(3):
            pushed.export(nothing)
        pushed.shutdown()
        pushed.export(nothing)
    first, back, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(
        f"metrics for {receiver.address} cannot be sent: Failed to export metrics"
    )
    assert back.startswith(f"metrics for {receiver.address} are sent again, after 5 tries in ")
    assert "already shutdown" in last


def test_a_long_outage_is_said_less_and_less_often() -> None:
    """After a minute, then two, up to an hour; the next outage is said at once."""
    now_s = 0.0
    outage, said = Outage("metrics", lambda: now_s), list[float]()
    while now_s < 5 * LONGEST_PAUSE_S:
        if outage.failed("refused") is not None:
            said.append(now_s)
        now_s += 1.0
    pauses = [later - first for first, later in itertools.pairwise(said)]
    assert pauses[:4] == [FIRST_PAUSE_S, 120.0, 240.0, 480.0]
    assert max(pauses) == LONGEST_PAUSE_S
    assert outage.worked() == "metrics are sent again, after 18,000 tries in 18000 s"
    assert outage.worked() is None
    assert outage.failed("refused") is not None
    for pause_s in pauses[:2]:
        now_s += pause_s
        assert outage.failed("refused") is not None


def test_lines_of_other_exporters_of_the_program_stay(caplog: pytest.LogCaptureFixture) -> None:
    """Only what is logged while keepwarm exports, and in that thread, is said otherwise."""
    theirs = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    with exporter_logs_heard() as heard:
        theirs.warning("Transient error %s encountered while exporting spans, retrying", "refused")
        other = threading.Thread(target=theirs.warning, args=("theirs",))
        other.start()
        other.join()
    theirs.warning("later")
    assert [record.getMessage() for record in caplog.records] == ["theirs", "later"]
    assert why_of(heard) == "refused"


def test_calls_that_the_configuration_traces_are_sent_too(watched: Open, tmp_path: Path) -> None:
    """`[trace] otlp`: without a line of code the calls of a program arrive at the collector."""
    with Receiver() as receiver:
        trace = {"enabled": True, "folder": str(tmp_path), "otlp": receiver.address}
        it = watched(trace=trace)
        it.chat("a")
        it.shim.close()
        found = [span for span, _, _ in receiver.spans() if span.name == "request"]
    assert [attributes(span)["gen_ai.request.model"] for span in found] == ["a"]


def test_the_keepers_metrics_are_pushed_to_a_receiver(watched: Open) -> None:
    """`[metrics] otlp`: what ended since the last time is sent at the keeper's end at the latest."""
    with Receiver() as receiver:
        it = watched(metrics={"otlp": receiver.address, "interval": "1h"})
        it.chat("a")
        it.settle()
        it.shim.close()
        found = receiver.metrics()
    (point,) = found[REQUEST].histogram.data_points
    assert point.count == 1
    assert attributes(point)["gen_ai.request.model"] == "a"
    assert {
        "keepwarm.load.duration",
        "keepwarm.device.limit",
        "keepwarm.queue.depth",
    } <= found.keys()


def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end(
    watched: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter's own thread waits for it; the keeper leaves it behind."""
    monkeypatch.setattr(publishing, "CLOSE_LIMIT_S", 0.1)
    monkeypatch.setattr(publishing, "SHORTEST_S", 0.01)
    with Receiver(hangs=True) as receiver:
        it = watched(metrics={"otlp": receiver.address, "interval": 0})
        assert receiver.asked.wait(60), "the exporter waits for the receiver now"
        assert it.chat("a") == "one two three"
        it.shim.close()


def test_a_missing_package_is_named_and_costs_no_request(
    watched: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper serves; its fault says what to install."""
    it = watched(metrics={})
    without(monkeypatch, "prometheus_client")
    with pytest.raises(ConfigError) as raised:
        publishing._part("prometheus", "shim.keeper.metrics.scraping")
    assert raised.value.hint == "pip install 'keepwarm[prometheus]'"
    assert it.chat("a") == "one two three"


def test_a_trace_without_the_package_has_its_file_and_a_warning(
    watched: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tracing never costs a request: the warning says what to install."""
    without(monkeypatch, "trace_exporter")
    trace = {"enabled": True, "folder": str(tmp_path), "otlp": "http://127.0.0.1:9"}
    it = watched(trace=trace)
    with caplog.at_level(logging.WARNING, "keepwarm.client"):
        assert it.chat("a") == "one two three"
    it.shim.close()
    assert "pip install 'keepwarm[otlp]'" in caplog.text
    assert len(list(tmp_path.glob("*.trace.json"))) == 1


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """From now on, modules that need a package cannot be imported."""
    real = importlib.import_module

    def fails(name: str, base: str | None = None) -> ModuleType:
        if package in name or (package == "prometheus_client" and name.endswith("scraping")):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, base)

    monkeypatch.setattr(importlib, "import_module", fails)
