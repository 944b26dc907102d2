"""The contract of every kind of engine: what it does not do is refused at the door, as the page says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest

from backends.kinds import KINDS, Verb
from shim import InvalidRequest, Shim
from shim.config.schema.document import Config
from shim.config.verbs import verbs_of
from tests.engines.capability_table import PAGE, PLAIN, written
from tests.engines.contract import CANNOT, FEATURES

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
DOORS: Mapping[Verb, Callable[[Shim], Any]] = {
    "chat": lambda shim: shim.chat("m", "x"),
    "stream": lambda shim: list(shim.stream("m", "x")),
    "embed": lambda shim: shim.embed("m", ["x"]),
    "rerank": lambda shim: shim.rerank("m", "x", ["y"]),
    "transcribe": lambda shim: shim.transcribe("m", b"RIFF"),
    "speak": lambda shim: shim.speak("m", "x"),
    "tokenize": lambda shim: shim.tokenize("m", "x"),
    "call": lambda shim: shim.call("m"),
    "images": lambda shim: shim.chat("m", [{"role": "user", "content": [IMAGE]}]),
    "http": lambda shim: shim.http("m").__enter__(),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_verb_that_a_kind_does_not_do_is_refused_before_anything_is_loaded(kind: str) -> None:
    """By the model's name and its kind; there is neither a file nor a server to ask."""
    config = Config.from_mapping({"models": {"m": dict(PLAIN[kind])}})
    entry = config.models["m"]
    beyond = set(get_args(Verb)) - verbs_of(entry)
    assert beyond or entry.backend in {"openai", "vllm"}
    with Shim(config) as shim:
        for verb in beyond:
            with pytest.raises(InvalidRequest, match="m does not") as caught:
                DOORS[verb](shim)
            assert entry.backend in str(caught.value), verb


def test_the_tables_of_the_page_are_those_of_the_contract() -> None:
    """Run `python -m tests.engines.capability_table` where they are not."""
    page = PAGE.read_text("utf-8")
    assert written(page) == page


def test_the_contract_is_about_every_kind_and_about_its_own_points() -> None:
    """A new kind, or a new point, cannot be left out of the suite or the page."""
    assert {name.removesuffix(" here") for name in PLAIN} == set(KINDS)
    assert set(CANNOT) == {*PLAIN, "scripted"}
    assert all(points.keys() <= FEATURES.keys() for points in CANNOT.values())
