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
