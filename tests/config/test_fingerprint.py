"""A fingerprint is of what a configuration means, not of how it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.config import Amount, Config, KeeperSection, ModelEntry
from shim.config.schema.sections import BudgetSection
from shim.wire.fingerprint import differing, differs, fingerprint

MODEL = {"path": "/m/a.gguf"}


def of(model: dict[str, Any] | None = None, **sections: Any) -> dict[str, str]:
    """The fingerprint of a configuration with one model."""
    return fingerprint(Config.from_mapping({"models": {"a": model or MODEL}, **sections}))


def test_every_default_may_be_written_out() -> None:
    """Each key by itself, in every section that counts."""
    plain = of()
    for section, kind in (("budget", BudgetSection), ("keeper", KeeperSection)):
        for key in kind.model_fields.keys() - {"devices", "rpc"}:
            default = Config().model_dump(mode="json")[section][key]
            if default is not None:
                assert of(**{section: {key: default}}) == plain, key
    entry = ModelEntry.model_validate({"path": "/m/a.gguf"})
    for key, default in entry.model_dump(mode="json").items():
        if default is not None and key in entry.relevant_keys():
            assert of({**MODEL, key: default}) == plain, key


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
    assert of(budget=one) == of(budget=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"context": 8192}, {"context": {"min": 8192, "preferred": 8192}}),
        ({"kv_type": "q8_0"}, {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ({"role": "evaluator"}, {"role": "evaluator", "pin": True}),
        ({"lora": "/l.gguf"}, {"lora": ["/l.gguf"]}),
        ({"keep_alive": "10m"}, {"keep_alive": 600}),
    ],
)
def test_the_same_model_may_be_written_in_two_ways(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """What the keeper does with it is the same."""
    assert of({**MODEL, **one}) == of({**MODEL, **other})


@pytest.mark.parametrize("made", [fingerprint, Config.to_mapping])
def test_an_interrupt_comes_out_as_itself(
    made: Callable[[Config], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of a signal may raise wherever Python runs, in a value that is written, too."""
    config = Config.from_mapping({"models": {"a": MODEL}, "budget": {"limit": "1GiB"}})

    def interrupted(_: Amount) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Amount, "__str__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(config)


def test_files_are_those_that_paths_lead_to(tmp_path: Path) -> None:
    """By a link, and by a detour."""
    (tmp_path / "a.gguf").touch()
    (tmp_path / "link.gguf").symlink_to("a.gguf")
    plain = of({"path": str(tmp_path / "a.gguf")})
    assert of({"path": str(tmp_path / "link.gguf")}) == plain
    assert of({"path": str(tmp_path / "x" / ".." / "a.gguf")}) == plain
    assert of({"path": str(tmp_path / "b.gguf")}) != plain


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"budget": {"limit": "1GiB"}}, "budget"),
        ({"budget": {"reserve": "1GiB"}}, "budget"),
        ({"budget": {"devices": [{"device": "host", "limit": "1GiB"}]}}, "budget"),
        ({"keeper": {"idle_exit": 1}}, "keeper"),
        ({"models": {"a": {**MODEL, "context": {"min": 1024, "preferred": 4096}}}}, "models.a"),
        ({"models": {"a": {**MODEL, "kv_type_v": "q8_0"}}}, "models.a"),
        ({"models": {"a": {**MODEL, "pin": True}}}, "models.a"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], key: str) -> None:
    """And is an error of the client that counts on the other."""
    theirs = fingerprint(Config.from_mapping({"models": {"a": MODEL}, **change}))
    assert differing(of(), theirs) == [key]
    error = differs([key], "/p/keepwarm.toml")
    assert key in error.message
    assert error.facts["differ"] == [key]


def test_remote_models_and_models_of_others_do_not_count() -> None:
    """The keeper takes no part in the former; the latter are none of this client's."""
    far = {"far": {"url": "http://h"}, "a": MODEL}
    theirs = fingerprint(Config.from_mapping({"models": {**far, "b": {"path": "/b.gguf"}}}))
    assert differing(of(), theirs) == []
    assert "models.far" not in theirs
