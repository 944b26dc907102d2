"""Questions to the keeper before anything is loaded."""

from __future__ import annotations

import pytest

from harness import Graph, Step
from shim import Shim, UnknownModel
from tests.shim.conftest import Stage


def test_what_would_leave_and_what_fits_loads_nothing(stage: Stage) -> None:
    """A remote model takes no bytes here; a local one is looked up before it is asked for."""
    shim = stage.shim
    assert shim.would_evict("b") == ()
    assert shim.would_evict("remote") == ()
    assert shim.fit_together(["a", "b", "remote"])
    assert shim.fit_together(["remote"])
    assert stage.engines == []
    with pytest.raises(UnknownModel, match="nothing"):
        shim.would_evict("nothing")


def test_a_model_in_the_way_is_named_and_one_in_use_is_not(stage: Stage) -> None:
    """In a budget for either of two."""
    config = stage.shim.config.to_mapping()
    config["budget"]["limit"] = "30MB"
    with type(stage.shim)(config, factory=stage.make) as shim:
        shim.load("b")
        assert not shim.fit_together(["a", "b"])
        assert shim.would_evict("a") == ("b",)
        with shim.stream("b", "Hello.") as stream:
            next(stream)
            assert shim.would_evict("a") is None
        assert shim.would_evict("a") == ("b",)
        shim.release("b")
        assert shim.would_evict("a") == (), "a released model leaves first; no program misses it"
        shim.chat("b", "Hello.")
        assert shim.would_evict("a") == ("b",), "a request ends the release"
        assert len(stage.engines) == 1


def test_a_name_that_no_model_has_is_refused_alike_at_every_door() -> None:
    """With the nearest name, and no more of the others than can be read. Each door had its own words."""
    models = {f"m{n:02}": {"url": "http://127.0.0.1:9/v1"} for n in range(40)}
    with Shim({"models": {**models, "writer": {"url": "http://127.0.0.1:9/v1"}}}) as shim:
        step = Step("a", lambda _: 1, model="writr")
        for ask in (
            lambda: shim.chat("writr", "Hello."),
            lambda: shim.would_evict("writr"),
            lambda: shim.describe("writr"),
            lambda: Graph([step], shim=shim).run(),
        ):
            with pytest.raises(
                UnknownModel, match=r"^No model is called 'writr'\. Is 'writer'"
            ) as error:
                ask()
            assert "m29, ..." in error.value.hint
            assert "m30" not in error.value.hint
