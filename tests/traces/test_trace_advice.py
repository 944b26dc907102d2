"""Advice of a summary: what differs from the configuration in force, with lines that can be followed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import traces
from budget.admission.state import PREFETCH
from budget.eviction.policies.forecast import DECLARED_USES
from shim.cli import main
from tests.traces.test_trace_summaries import STORY, Event, evict, load, request, slice_of, write
from traces.reading import spans_of as spans
from traces.reading.advice import AdvisedConfig, AdvisedModel, section_of
from traces.reading.spans_of import Spans, spans_of
from traces.reading.summary import summarise

DISK = [load("a", 1, 0, 4, "cold") if e.get("cat") == "model_load" else e for e in STORY]
CONVOY = [
    slice_of("run", 0, 20),
    *request(1, "a", (0, 0, 0, 1, 18)),
    *(e for n in range(2, 5) for e in request(n, "a", (1, 18, 18, 18.1, 18.5))),
]
STORM = [
    slice_of("run", 0, 20),
    *(e for n in range(3) for e in (load("a", n, 4 * n, 4 * n + 1), evict("a", 4 * n + 2, 4 * n + 3))),
    *(e for n in (0, 4, 8) for e in request(n, "a", (n, n + 1, n + 1, n + 1.1, n + 2), f"a/{n // 4}")),
]  # fmt: skip


def anew(cached: int) -> list[Event]:
    """Three long prompts, of whose tokens the KV cache spared so many of a hundred."""
    events = [
        e for n in range(3) for e in request(n, "a", (6 * n, 6 * n, 6 * n, 6 * n + 5, 6 * n + 6))
    ]
    tokens = {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read.input_tokens": cached}
    for event in events:
        if event.get("cat") == "request":
            event["args"] |= tokens
    return [slice_of("run", 0, 20), *events]


STORIES = {"reloads": STORY, "disk": DISK, "convoy": CONVOY, "storm": STORM, "prompts": anew(10)}


def told(events: list[Event], force: AdvisedConfig | None = None) -> list[tuple[str, str, str]]:
    """The advice for a trace: text, section and lines."""
    advice = summarise(spans_of(events), force=force).advice
    return [(one.text, one.section, one.lines) for one in advice]


def test_a_model_whose_reloads_cost_much_is_to_be_pinned_unless_it_is() -> None:
    """The share is said; a run without troubles gets no advice."""
    assert told(STORY)[0] == (
        "pin a: 40% of the wall time is its reloads",
        '[models."a"]',
        "pin = true",
    )
    for known in (AdvisedModel(pinned=True), AdvisedModel(can_pin=False)):
        assert told(STORY, AdvisedConfig(models={"a": known})) == []
    assert told([slice_of("run", 0, 20), *request(1, "a", (0, 0, 0, 1, 8))]) == []


def test_a_model_beside_which_another_would_never_fit_is_not_to_be_pinned() -> None:
    """The pin would save its reloads, and make each request for the other an error."""
    sized = [
        event | {"args": event["args"] | {"keepwarm.bytes": 60}}
        if event.get("cat") == "model_load"
        else event
        for event in STORY
    ]
    for limit, lines in ((119, []), (120, ["pin = true"])):
        books = {"ph": "C", "name": "device bytes", "pid": 2, "ts": 0, "args": {"limit": limit}}
        assert [one[2] for one in told([*sized, books])] == lines


def test_a_section_is_not_said_to_be_in_a_file_that_has_no_such_model(tmp_path: Path) -> None:
    """The run may have had another configuration than the folder in which its trace is read."""
    file = tmp_path / "keepwarm.toml"
    file.write_text('[models.other]\nurl = "http://127.0.0.1:9"\n')
    trace = write(tmp_path / "t.json", STORY)
    shown = CliRunner().invoke(main, ["--config", str(file), "trace", "summary", str(trace)])
    said = f'set in [models."a"] of the run\'s configuration ({file} has no such model):'
    assert said in shown.stdout


def test_loads_from_the_disk_are_hidden_by_what_is_not_done_yet() -> None:
    """Looking ahead is on by default: then the order is what is missing."""
    assert told(DISK)[-1][1:] == ("", "with shim.plan(['a']): ...")
    assert told(DISK, AdvisedConfig(prefetch=False))[-1][1:] == ("[budget]", "prefetch = true")
    ahead = [
        event | {"args": {**event["args"], "keepwarm.load.id": "other"}}
        if event.get("cat") == "model_load"
        else event
        for event in DISK
    ]
    assert told(ahead) == [], "no request waited for them"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("model_load", {"keepwarm.reason": "prefetch"}),
        ("evict", {"keepwarm.decision": "prefetch"}),
        ("evict", {"keepwarm.decision.followed": "declared uses"}),
    ],
)
def test_uses_that_are_declared_are_not_to_be_declared(kind: str, said: dict[str, str]) -> None:
    """A load ahead shows it, and so does what an eviction followed; other advice stays."""
    for story in (STORM, DISK):
        known = [e | {"args": e["args"] | said} if e.get("cat") == kind else e for e in story]
        assert any("plan" in lines for _, _, lines in told(story))
        assert [one for one in told(story) if "plan" not in one[2]] == told(known)
    hidden = told(known, AdvisedConfig(prefetch=False))
    assert ("[budget]", "prefetch = true") in [one[1:] for one in hidden]


def test_declared_uses_are_looked_for_once_and_not_for_each_eviction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trace with 40,000 evictions would take half a minute."""
    asked, declared = list[Spans](), Spans.declared

    def counted(it: Spans) -> frozenset[str]:
        asked.append(it)
        return declared(it)

    monkeypatch.setattr(Spans, "declared", counted)
    stays = (
        e
        for n in range(50)
        for e in (load("a", n, 4 * n, 4 * n + 1), evict("a", 4 * n + 2, 4 * n + 3))
    )
    assert "declare coming uses: 49 evictions" in told([slice_of("run", 0, 200), *stays])[0][0]
    assert len(asked) <= 3


def test_the_words_by_which_declared_uses_show_are_those_of_the_policy_and_the_core() -> None:
    """Traces import neither."""
    assert (traces.PREFETCH, spans.DECLARED_USES) == (PREFETCH, DECLARED_USES)


def test_requests_behind_a_long_answer_are_worth_a_slot_although_it_generates_all_the_time() -> (
    None
):
    """A convoy: no moment is lost to waiting alone, and still each short request waits."""
    (advice,) = told(CONVOY)
    assert advice == (
        "give a more slots: in 85% of the wall time a request waits for one",
        '[models."a"]',
        "slots = 2",
    )
    known = AdvisedModel(slots=4, context=1024)
    assert told(CONVOY, AdvisedConfig(models={"a": known}))[0][2] == "slots = 8\ncontext = 2048"
    single = told(CONVOY, AdvisedConfig(models={"a": AdvisedModel(can_slots=False)}))[0]
    assert single[1:] == (
        "",
        "shim.chat('a', messages, priority=-1)  # yields to the others in mid-answer",
    )


@pytest.mark.parametrize("name", ["a", 'q"', "back\\slash", "l\nb\t\x1b\x7f", "\u2028é模"])
def test_a_section_is_toml_whatever_its_model_is_called(name: str) -> None:
    """DEL is the one character that JSON has as it is, and TOML does not."""
    assert tomllib.loads(section_of(name)) == {"models": {name: {}}}


def test_waits_for_bytes_are_worth_no_slot() -> None:
    """The keeper says what a request waited for."""
    waiting = [
        event | {"args": {**event["args"], "keepwarm.waited_for": "bytes of host held by b"}}
        if event.get("cat") == "request"
        else event
        for event in CONVOY
    ]
    assert told(waiting) == []


@pytest.mark.parametrize(("cached", "advised"), [(10, True), (90, False)])
def test_prompts_that_are_evaluated_anew_are_worth_a_common_beginning(
    cached: int, *, advised: bool
) -> None:
    """Where the KV cache spares most of them, their evaluation is what it costs."""
    assert [one[0][:23] for one in told(anew(cached))] == ["let prompts begin alike"] * advised


@pytest.mark.parametrize("story", list(STORIES))
@pytest.mark.parametrize("ahead", ["true", "false", '"stage"'])
def test_every_advice_can_be_followed_to_the_letter(
    tmp_path: Path, tiny_models: dict[str, Path], story: str, ahead: str
) -> None:
    """Its keys are set where it says, the configuration holds, differs, and gets that advice no more."""
    file = tmp_path / "keepwarm.toml"
    file.write_text(
        f'[budget]\ndevice = "host"\nprefetch = {ahead}\n'
        f'[models."a"]\npath = "{tiny_models["classifier"]}"\ncontext = 1024\nslots = 2\n'
    )
    trace = write(tmp_path / "t.json", STORIES[story])
    advice = _summary(file, trace)
    assert advice
    for one in advice:
        if not one["section"]:
            compile(one["lines"], "advice", "exec")
            continue
        before = file.read_text()
        file.write_text(_followed(before, one["section"], one["lines"]))
        checked = CliRunner().invoke(main, ["--config", str(file), "config", "check", "--json"])
        assert json.loads(checked.stdout)["ok"], checked.output
        assert tomllib.loads(file.read_text()) != tomllib.loads(before)
        assert one not in _summary(file, trace)


def _summary(config: Path, trace: Path) -> list[dict[str, str]]:
    words = ["--config", str(config), "trace", "summary", str(trace)]
    said = CliRunner().invoke(main, [*words, "--json"])
    assert said.exit_code == 0, said.output
    found: list[dict[str, str]] = json.loads(said.stdout)["advice"]
    shown = CliRunner().invoke(main, words).stdout
    assert all(f"set in {one['section']} of {config}:" in shown for one in found if one["section"])
    return found


def _followed(text: str, section: str, lines: str) -> str:
    """A configuration with these keys set in a section that is there."""
    keys: dict[str, Any] = tomllib.loads(lines)
    head, header, rest = text.partition(f"{section}\n")
    assert header
    own, bracket, behind = rest.partition("\n[")
    kept = [line for line in own.splitlines() if line.split(" = ")[0] not in keys]
    return head + header + "\n".join([*kept, lines]) + ("\n[" + behind if bracket else "\n")
