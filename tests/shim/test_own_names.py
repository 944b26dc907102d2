"""The error of a request names the model that it asked for, whatever its engine is called."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.base import Capabilities
from backends.scripted import Script
from shim import EngineDied, KeepwarmError, LoadFailed, Shim
from shim.keeper.server.own_names import renamed
from tests.shim.conftest import Stage
from tests.shim.test_two_projects import Open, engine_of, model, project

__all__ = ["project"]


@pytest.fixture
def rag(stage: Stage, project: Open, tiny_models: dict[str, Path]) -> Shim:
    """A second project: `mine` shares an engine with the first one's `b`, and `a` is not its `a`."""
    text = model("mine", tiny_models["producer"]) + model("a", tiny_models["embedder"])
    rag = project("rag", text + model("big", tiny_models["producer"], slots=64))
    assert engine_of(rag, "mine") == engine_of(stage.shim, "b")
    engine_of(rag, "a")
    for name in ("mine", "a"):
        rag.unload(name)
    return rag


def play(stage: Stage, **script: Any) -> None:
    """Have every engine that starts from now on follow a script."""
    names = {name for row in stage.shim.status()["engines"] for name in row["models"]}
    stage.scripts.update({name: Script(**script) for name in names})


def said(error: KeepwarmError) -> str:
    """All that an error says; no name but the request's own may be in it."""
    text = f"{error} {json.dumps(error.facts)}"
    assert not re.search(r"@|\bb\b|\+", text), text
    return text


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "its load fails": ({"load": "fail"}, {}, "^{} did not load"),
    "it dies": ({"die_after": 1}, {}, '"model": "{}"'),
    "it refuses": (
        {"refuse": (400, {"error": {"message": "no"}})},
        {},
        "the engine of {} answered",
    ),
    "it cannot": (
        {"capabilities": Capabilities()},
        {"grammar": 'root ::= "a"'},
        r"{} \(llama.cpp\) cannot honour",
    ),
}


@pytest.mark.parametrize("name", ["mine", "a"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_engines_error_names_the_model_that_was_asked_for(
    stage: Stage, rag: Shim, case: str, name: str, *, streamed: bool
) -> None:
    """In the message, in the facts and in the hint, from the keeper and from the client."""
    script, options, words = CASES[case]
    play(stage, **script)
    with pytest.raises(KeepwarmError) as caught:
        list(rag.stream(name, "x", **options)) if streamed else rag.chat(name, "x", **options)
    assert re.search(words.format(name), said(caught.value))


def test_a_refusal_of_the_books_names_the_model_that_was_asked_for(stage: Stage, rag: Shim) -> None:
    """One that never fits, and one whose deadline passes while it loads."""
    with pytest.raises(KeepwarmError) as caught:
        rag.chat("big", "x")
    assert "big asks for" in said(caught.value)
    play(stage, load_gate=asyncio.Event())
    with pytest.raises(KeepwarmError) as caught:
        rag.chat("a", "x", deadline_s=0.05)
    assert "the request for a passed" in said(caught.value)


def test_a_name_that_is_a_word_is_replaced_only_where_it_is_a_name() -> None:
    """Neither in other words, paths and names, nor in the lines of a log."""
    died = EngineDied(
        "the server of server exited with code 1 at /opt/server/server.bin, beside server-2.",
        hint="Look at [models.server] command.",
        model="server",
    )
    assert str(renamed(died, ["server"], "judge")) == (
        "the server of judge exited with code 1 at /opt/server/server.bin, beside server-2."
        " Look at [models.judge] command."
    )
    failed = LoadFailed(
        "a did not load: it ended.\n  | a is here\n  | a@rag did not load", model="a"
    )
    assert renamed(failed, ["a", "a@rag"], "x").message == (
        "x did not load: it ended.\n  | a is here\n  | a@rag did not load"
    )
    assert failed.facts["model"] == "a"
    both = LoadFailed("loading a@rag+b failed: no file.", model="a@rag+b")
    assert str(renamed(both, ["a@rag", "b", "a@rag+b"], "x")) == "loading x failed: no file."
    lower = LoadFailed("too long.", hint="Lower [models.a@rag] context, not [models.a@rags].")
    assert renamed(lower, ["a@rag"], "x").hint == "Lower [models.x] context, not [models.a@rags]."


@pytest.mark.parametrize("name", ["qwen", "qwen3", "qwen3:8b", "qwen3/8b", "qwen3.8b", "qwen3-8b"])
def test_a_name_that_another_one_begins_with_is_left_in_that_one(name: str) -> None:
    """`qwen3` became a part of `qwen3:8b`, which is another model."""
    others = {"qwen", "qwen3", "qwen3:8b", "qwen3/8b", "qwen3.8b", "qwen3-8b"} - {name}
    for other in others:
        text = f"{name} did not load: the engine of {other} is pinned, for {other}."
        assert renamed(LoadFailed(text), [name], "mine").message == text.replace(
            f"{name} did not", "mine did not"
        )


@pytest.mark.parametrize("name", ["model", "the", "a", "server", "of", "engine"])
def test_a_name_that_is_an_english_word_is_replaced_where_it_is_a_name(name: str) -> None:
    """The same word beside it is no name."""
    for text in (
        "{} did not load: a server with a model, the engine, did not end.",
        "the server of {} exited with code 1; the model and a server are gone.",
        "loading {} failed: the server is no engine of ours.",
    ):
        failed = LoadFailed(text.format(name), hint=f"Look at [models.{name}] command.")
        assert str(renamed(failed, [name], "mine")) == (
            f"{text.format('mine')} Look at [models.mine] command."
        )
