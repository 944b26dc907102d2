"""Every method of a `Shim` that takes a model, given what is no name: a typed error."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import Config, InvalidRequest, Shim

NAMED = sorted(
    name
    for name, method in inspect.getmembers(Shim, inspect.isfunction)
    if not name.startswith("_") and "model" in inspect.signature(method).parameters
)
LISTED = sorted(
    name
    for name, method in inspect.getmembers(Shim, inspect.isfunction)
    if not name.startswith("_") and "models" in inspect.signature(method).parameters
)
OTHERS: dict[str, object] = {"documents": ["x"], "audio": b"RIFF"}
"""Parameters beside the model, where "x" is none."""


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    """One model that is far away: no keeper is started for it."""
    far = Config.from_mapping({"models": {"far": {"url": "http://127.0.0.1:9"}}})
    with Shim(far, runtime=tmp_path) as shim:
        yield shim


def _asked(method: Any, given: object) -> None:
    """Call a method until it asks for the model: some only begin when they are entered or awaited."""
    others = [
        OTHERS.get(parameter.name, "x")
        for parameter in list(inspect.signature(method).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]

    async def awaited() -> None:
        found = method(given, *others)
        if inspect.isawaitable(found):
            await found
        elif hasattr(found, "__aenter__"):
            async with found:
                pass
        elif hasattr(found, "__enter__"):
            with found:
                pass

    asyncio.run(awaited())


@pytest.mark.parametrize("given", [["far"], {"far": 1}, 3, None, b"far"], ids=repr)
@pytest.mark.parametrize("name", NAMED)
def test_a_model_is_given_by_its_name(shim: Shim, name: str, given: object) -> None:
    """A list of one name would end in the words of a dictionary."""
    with pytest.raises(InvalidRequest, match="A model is given by its name, not by"):
        _asked(getattr(shim, name), given)


@pytest.mark.parametrize("given", ["far", 3, None, [["far"]], [3], b"far"], ids=repr)
@pytest.mark.parametrize("name", LISTED)
def test_models_are_given_as_a_list_of_names(shim: Shim, name: str, given: object) -> None:
    """What cannot be gone through, or has something else in it, is told as such."""
    with pytest.raises(InvalidRequest, match=r"list of model names|A model is given by its name"):
        _asked(getattr(shim, name), given)
