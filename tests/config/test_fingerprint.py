"""What a client and a keeper compare: what a configuration means, not how it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.config import Amount, Config, KeeperSection, ModelEntry
from shim.config.schema.kind_keys import FOLLOW_FILE_KEYS, TIMEOUT_KEYS
from shim.config.schema.sections import BudgetSection
from shim.wire.agreed_sections import differing, differs, sections_said
from shim.wire.fingerprint import fingerprint, is_reference, name_of, reference

MODEL = {"path": "/m/a.gguf"}


def of(model: dict[str, Any]) -> str:
    """The fingerprint of a model."""
    return fingerprint(ModelEntry.model_validate(model))


def config(**sections: Any) -> Config:
    """A configuration of one model."""
    return Config.from_mapping({"models": {"a": MODEL}, **sections})


def compared(mine: dict[str, Any], keepers: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What a client of one configuration finds in the greeting of a keeper with another."""
    return differing(config(**mine), sections_said(config(**keepers)))


def test_every_default_may_be_written_out() -> None:
    """Each key by itself, in every section that counts."""
    for section, kind in (("budget", BudgetSection), ("keeper", KeeperSection)):
        for key in kind.model_fields.keys() - {"devices", "rpc"}:
            default = Config().model_dump(mode="json")[section][key]
            if default is not None:
                assert compared({section: {key: default}}, {}) == {}, key
    entry = ModelEntry.model_validate({"path": "/m/a.gguf"})
    for key, default in entry.model_dump(mode="json").items():
        if default is not None and key in entry.relevant_keys() - FOLLOW_FILE_KEYS:
            assert of({**MODEL, key: default}) == of(MODEL), key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"limit": "20GiB"}, {"limit": 21474836480}),
        ({"limit": "90%"}, {"limit": "90.0 %"}),
        ({"max_wait": "1m30s"}, {"max_wait": 90}),
        ({"stage_rate": "1GB"}, {}),
        ({"device": "host"}, {"devices": ["host"]}),
        (
            {"device": "cuda:0", "limit": "8GiB"},
            {"devices": [{"device": "cuda:0", "limit": "8192MiB"}], "limit": "1GiB"},
        ),
    ],
)
def test_the_same_budget_may_be_written_in_other_units(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Bytes, shares, seconds, and the two ways to name a device."""
    assert compared({"budget": one}, {"budget": other}) == {}
    assert compared({"budget": other}, {"budget": one}) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"context": 8192}, {"context": {"min": 8192, "preferred": 8192}}),
        ({"kv_type": "q8_0"}, {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ({"role": "evaluator"}, {"role": "evaluator", "pin": True}),
        ({"lora": "/l.gguf"}, {"lora": ["/l.gguf"]}),
        ({"keep_alive": "10m"}, {"keep_alive": 600}),
        (dict.fromkeys(TIMEOUT_KEYS, 7), {}),
    ],
)
def test_the_same_model_may_be_written_in_two_ways(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """What the keeper does with it is the same: the time-outs of requests are the client's own."""
    assert of({**MODEL, **one}) == of({**MODEL, **other})


@pytest.mark.parametrize("made", [sections_said, Config.to_mapping])
def test_an_interrupt_comes_out_as_itself(
    made: Callable[[Config], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of a signal may raise wherever Python runs, in a value that is written, too."""
    given = config(budget={"limit": "1GiB"})

    def interrupted(_: Amount) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Amount, "__str__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(given)


def test_files_are_those_that_paths_lead_to(tmp_path: Path) -> None:
    """By a link, and by a detour."""
    (tmp_path / "a.gguf").touch()
    (tmp_path / "link.gguf").symlink_to("a.gguf")
    plain = of({"path": str(tmp_path / "a.gguf")})
    assert of({"path": str(tmp_path / "link.gguf")}) == plain
    assert of({"path": str(tmp_path / "x" / ".." / "a.gguf")}) == plain
    assert of({"path": str(tmp_path / "b.gguf")}) != plain


@pytest.mark.parametrize(
    "change",
    [
        {"context": {"min": 1024, "preferred": 4096}},
        {"kv_type_v": "q8_0"},
        {"pin": True},
        {"keep_alive": 7},
        {"context": 4096},
        {"n_ubatch": 512},
    ],
)
def test_other_settings_are_another_model(change: dict[str, Any]) -> None:
    """A client asks for the settings that it means, not for a name alone.

    A written context holds for every file. One that is left out is at most what the file was trained for.
    """
    entry = ModelEntry.model_validate({**MODEL, **change})
    assert fingerprint(entry) != of(MODEL)
    said = reference("a.b", entry)
    assert (name_of(said), is_reference(said), is_reference("a.b@c")) == ("a.b", True, False)


@pytest.mark.parametrize(
    ("mine", "keepers", "found"),
    [
        ({"limit": "1GiB"}, {}, {"budget.limit": ("1073741824B", "90%")}),
        ({"reserve": "1GiB"}, {}, {"budget.reserve": ("1073741824B", "left out")}),
        ({"policy": "lru"}, {}, {"budget.policy": ("lru", "forecast")}),
        ({"device": "cuda:1"}, {"device": "host"}, {"budget.device": ("cuda:1", "host")}),
        (
            {"limit": "1GiB"},
            {"devices": ["cuda:0", {"device": "cuda:1", "limit": "2GiB"}], "limit": "1GiB"},
            {"budget.limit of cuda:1": ("1073741824B", "2147483648B")},
        ),
    ],
)
def test_a_budget_that_differs_is_named_with_both_values_and_both_files(
    mine: dict[str, Any], keepers: dict[str, Any], found: dict[str, tuple[str, str]]
) -> None:
    """And what to do about it. A client that leaves the key out agrees with every keeper."""
    assert compared({"budget": mine}, {"budget": keepers}) == found
    given = config(budget=mine)
    given.remember(Path("/mine/keepwarm.toml"), {})
    error = differs(found, given, "/theirs/keepwarm.toml")
    for said in (*found, *next(iter(found.values())), "/mine/", "/theirs/", "config reload"):
        assert said in str(error)
    assert error.facts["differ"] == list(found)
    assert compared({}, {"budget": mine}) == {}


def test_models_of_other_projects_do_not_count() -> None:
    """Nor do endpoints: the keeper takes no part in them."""
    far = {"far": {"url": "http://h"}, "a": {"path": "/other.gguf"}}
    assert compared({"models": far}, {}) == {}
