"""The six stories of docs/reading-a-trace.md show what the page says, also with the smallest models."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from traces.reading.request_times import RequestTimes
from traces.reading.spans_of import Stay, spans_of
from traces.reading.stored_events import TraceFile
from traces.reading.summary import TraceSummary, summarise
from traces.reading.totals import RequestTotals

FOLDER = Path(__file__).parents[2] / "examples" / "traces"
PAGE = FOLDER.parents[1] / "docs" / "reading-a-trace.md"
STORIES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "showing")

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """The scripts import `showing` from their own folder, as a program does that is run there."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"story_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Told(NamedTuple):
    """What a trace has."""

    loads: list[Stay]
    requests: list[RequestTimes]


def told(
    name: str, models: dict[str, Path], folder: Path, *together: str, **more: Any
) -> tuple[Told, TraceSummary]:
    """A story with the smallest models: what its trace has, and its summary."""
    showing, story = importlib.import_module("showing"), script(name).story
    config = showing.configured(models, together, **more)
    run = showing.record(story, config, name, folder)
    assert run.problems == []
    requests, add = list[RequestTimes](), RequestTotals.add

    def noted(totals: RequestTotals, request: RequestTimes) -> None:
        requests.append(request)
        add(totals, request)

    with patch.object(RequestTotals, "add", noted):
        spans = spans_of(TraceFile(run.trace_path).events())
    return Told(spans.loads, requests), summarise(spans)


def test_a_cold_load_is_waited_for_once(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """The first request waits for the load, the second for nothing."""
    spans, summary = told("cold_load", tiny_models, tmp_path, "writer")
    assert [load.reason for load in spans.loads] == ["requested"]
    first, second = spans.requests
    assert (first.waited_for, second.waited_for) == (spans.loads[0].id, None)
    assert (summary.models["writer"].requests, summary.models["writer"].cold) == (2, 1)


def test_a_hidden_load_keeps_no_request_waiting(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The writer is loaded before it is asked for."""
    spans, summary = told("hidden_load", tiny_models, tmp_path, "router", "writer")
    assert summary.models["writer"].cold == 0
    load = next(one for one in spans.loads if one.model == "writer")
    asked = next(one for one in spans.requests if one.model == "writer").asked
    assert load.reason == "prefetch"
    assert asked is not None
    assert load.end <= asked
    assert summary.hidden_load_s > 0


def test_a_swap_storm_loads_for_every_request(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Every request is cold, and the summary regrets the evictions."""
    _, summary = told("swap_storm", tiny_models, tmp_path)
    assert [model.cold for model in summary.models.values()] == [3, 3]
    assert (summary.evictions, summary.regretted) == (5, 4)
    assert any("shim.plan" in one.lines for one in summary.advice)


def test_a_convoy_waits_for_the_slot(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """The short questions wait for the long answer, and the summary asks for slots."""
    spans, summary = told("convoy", tiny_models, tmp_path, "writer", writer={"slots": 1})
    behind = [one for one in spans.requests if one.waited_for is None]
    assert len(behind) == 4
    assert summary.models["writer"].cold == 1
    names = {one.id for one in behind}
    causes = {wait.cause for wait in summary.waits if wait.request in names}
    assert causes == {"a slot of writer"}


def test_a_kv_leak_evaluates_ever_longer_prompts_anew(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Each prompt is longer than the one before, and the cache spares hardly any of it."""
    spans, _ = told("kv_leak", tiny_models, tmp_path, "writer")
    prompts = [one.prompt_tokens for one in spans.requests]
    assert prompts == sorted(set(prompts))
    assert len(prompts) == 6
    assert sum(one.cached_tokens for one in spans.requests) < 0.25 * sum(prompts)


def test_a_good_pipeline_loads_each_model_once(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """No eviction, and nothing to advise about reloads."""
    slots = {"slots": 2}
    spans, summary = told(
        "good_pipeline", tiny_models, tmp_path, "router", "writer", router=slots, writer=slots
    )
    assert [model.loads for model in summary.models.values()] == [1, 1]
    assert (summary.evictions, len(spans.requests)) == (0, 8)


def test_the_page_shows_every_story() -> None:
    """Each with its script and its picture."""
    page = PAGE.read_text("utf-8")
    assert len(STORIES) == 6
    for name in STORIES:
        assert f"examples/traces/{name}.py" in page
        picture = PAGE.parent / "pictures" / f"trace-{name.replace('_', '-')}.png"
        assert f"pictures/{picture.name}" in page
        assert picture.stat().st_size < 150_000
