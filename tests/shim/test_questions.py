"""Questions to the keeper before anything is loaded."""

from __future__ import annotations

import pytest

from shim import UnknownModel
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
