"""The alert rules and the dashboard ask for metrics that a keeper really has."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script
from budget.errors import KeepwarmError
from tests.metrics.conftest import Open
from tests.metrics.scrapes import Samples, UnixConnection, Watched
from tools.promtool import promtool

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
RULES, BOARD = FOLDER / "keepwarm-alerts.yml", FOLDER / "keepwarm-dashboard.json"
SELECTOR = re.compile(r"\b((?:gen_ai|keepwarm)_\w+)(?:\{([^}]*)\})?")
GROUP = re.compile(r"\b(?:by|on|ignoring|without|group_left) ?\(([^)]*)\)")
ROLES = {
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
    "operation": "gen_ai.operation.name",
}
WORD = re.compile(r"\b(?:gen_ai|keepwarm)_\w+|\berror_type\b")


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = importlib.import_module("yaml").safe_load(RULES.read_text("utf-8"))["groups"]
    return list(group["rules"])


def queries() -> Iterator[str]:
    """Every expression of the rules and of the dashboard."""
    yield from (rule["expr"] for rule in rules())
    for panel in json.loads(BOARD.read_text("utf-8"))["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def busy(watched: Open) -> Watched:
    """A keeper in which everything has happened that counts."""
    it = watched({"b": Script(load="fail")})
    it.chat("a")
    with pytest.raises(KeepwarmError):
        it.chat("b")
    it.chat("a")
    return it


def known(samples: Samples) -> set[str]:
    """The names of its metrics and of their labels."""
    return samples.names | {label for _, labels in samples.values for label, _ in labels}


def test_every_query_asks_for_what_a_keeper_has(watched: Open) -> None:
    """A metric that was renamed would leave an alert that never fires."""
    here = known(busy(watched).scrape())
    # These are absent until they count for the first time, or until the first measurement.
    here |= {"keepwarm_engine_deaths_total", "keepwarm_keeper_faults_total", "keepwarm_fault_kind"}
    here |= {"keepwarm_device_free_bytes"}
    asked = {word for query in queries() for word in WORD.findall(query)}
    assert len(asked) > 15
    assert asked - here == set()


def labels_by_metric(samples: Samples) -> dict[str, set[str]]:
    """The labels of each metric."""
    found: dict[str, set[str]] = {}
    for name, labels in samples.values:
        found.setdefault(name, set()).update(label for label, _ in labels)
    return found


def test_every_query_asks_a_metric_for_labels_that_it_has(watched: Open) -> None:
    """A label that another metric has matches nothing here, and sums by it are one nameless line."""
    here = labels_by_metric(busy(watched).scrape())
    here["keepwarm_engine_deaths_total"] = {"keepwarm_model", "error_type"}
    here["keepwarm_keeper_faults_total"] = {"keepwarm_fault_kind"}
    here["keepwarm_device_free_bytes"] = {"keepwarm_device"}
    # Of a request that failed after it was granted.
    here["gen_ai_server_request_duration_seconds_count"].add("error_type")
    asked = 0
    for query in queries():
        selected = SELECTOR.findall(GROUP.sub("", query))
        assert selected, query
        for name, matchers in selected:
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
            assert labels - {"le"} <= here[name], query
            asked += len(labels)
        for group in GROUP.findall(query):
            wanted = {label.strip() for label in group.split(",")}
            assert wanted <= {"le"}.union(*(here[name] for name, _ in selected)), query
            asked += len(wanted)
    assert asked > 15


def documented() -> dict[str, set[str]]:
    """The metrics of docs/metrics.md by Prometheus's name without its unit, with their attributes."""
    page = (FOLDER.parents[1] / "docs" / "metrics.md").read_text("utf-8")
    found: dict[str, set[str]] = {}
    for row in re.findall(
        r"^\| (`[^|]+) \| (?:histogram|counter|gauge)[^|]*\| ([^|]+) \|", page, re.MULTILINE
    ):
        names, by = row
        first, *more = re.findall(r"`([\w.]+)`", names)
        attributes = set(re.findall(r"`([\w.]+)`", by))
        attributes |= {
            ROLES[word]
            for word in re.findall(r"\b(model|provider|operation)\b", re.sub("`[^`]*`", "", by))
        }
        for name in (first, *(first.rpartition(".")[0] + one for one in more)):
            found[name.replace(".", "_")] = {one.replace(".", "_") for one in attributes}
    return found


def test_the_page_has_every_metric_with_the_labels_that_a_keeper_gives_it(watched: Open) -> None:
    """Each row is exported, with its attributes; and nothing is exported that has no row."""
    it = busy(watched)
    here, told = labels_by_metric(it.scrape()), documented()
    absent = {"keepwarm_engine_deaths", "keepwarm_keeper_faults", "keepwarm_device_free"}
    exported: dict[str, set[str]] = {}
    for name, labels in here.items():
        row = max((one for one in told if name.startswith(one)), key=len, default=None)
        if row is None:
            assert name.startswith(("target_info", "otel_scope")), name
            continue
        exported.setdefault(row, set()).update(
            label for label in labels if label != "le" and not label.startswith("otel_scope")
        )
    assert told.keys() - exported.keys() <= absent
    assert len(exported) > 15
    for row, labels in exported.items():
        assert labels - told[row] == set(), row
        assert told[row] - labels <= {"error_type"}, row


def test_the_reasons_that_the_rules_name_are_those_that_are_counted(watched: Open) -> None:
    """The storm counts evictions for other models, by the words that the keeper uses."""
    seen = busy(watched).scrape()
    named = {
        word for query in queries() for word in re.findall(r'keepwarm_reason="([^"]+)"', query)
    }
    assert named == {"for another model"}
    assert seen.of("keepwarm_evictions_total", keepwarm_reason="for another model") == 1


def test_every_alert_says_what_to_do_and_the_panels_do_not_overlap() -> None:
    """An alert without a next step is noise."""
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"info", "warning"}
    places = [
        (place["x"] + dx, place["y"] + dy)
        for panel in json.loads(BOARD.read_text("utf-8"))["panels"]
        for place in [panel["gridPos"]]
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(set(places)) == len(places)


@pytest.mark.promtool
def test_promtool_finds_the_rules_sound_and_their_own_tests_pass() -> None:
    """What fires and what does not, by Prometheus's own evaluation."""
    for command in (("check", "rules", RULES.name), ("test", "rules", "keepwarm-alerts.test.yml")):
        done = subprocess.run(
            [str(promtool()), *command], cwd=FOLDER, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


@pytest.mark.promtool
def test_promtool_has_nothing_to_say_about_a_scrape(watched: Open) -> None:
    """Names, units, help texts and types as Prometheus wants them."""
    it = busy(watched)
    connection = UnixConnection(it.place)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read()
    connection.close()
    done = subprocess.run(
        [str(promtool()), "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
