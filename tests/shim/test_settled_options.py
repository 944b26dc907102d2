"""Calls with the same options share what is decided about them, and never more than that."""

from __future__ import annotations

from typing import Any

import pytest

from backends.base import Capabilities, Endpoint
from backends.openai.options import FixedOptions
from backends.openai.protocol import ChatRequest, chat_body
from shim import InvalidRequest, UnknownModel
from shim.calls import session
from tests.shim.conftest import Stage


def test_equal_options_of_other_types_are_other_options(stage: Stage) -> None:
    """True and 1.0 are equal to 1, and neither is a number of tokens."""
    assert stage.shim.chat("a", "x", max_tokens=1).content
    for wrong in (True, 1.0):
        with pytest.raises(InvalidRequest, match="max_tokens"):
            stage.shim.chat("a", "x", max_tokens=wrong)  # type: ignore[arg-type]
    assert stage.shim.chat("a", "x", max_tokens=1).content


def test_a_list_that_changes_between_two_calls_is_read_again(stage: Stage) -> None:
    """What a caller appends to `stop` after a call holds for the next one."""
    stop: list[Any] = ["."]
    stage.shim.chat("a", "x", stop=stop)
    stop.append(3)
    with pytest.raises(InvalidRequest, match="stop"):
        stage.shim.chat("a", "x", stop=stop)


def test_a_deadline_begins_with_each_call(stage: Stage) -> None:
    """The second call has all of its time, too."""
    first, second = (stage.shim._session.call("a", "x", {"deadline_s": 5.0}) for _ in range(2))
    assert second.limits["deadline"] is not None
    assert first.limits["deadline"] != second.limits["deadline"]
    assert first.wants is not second.wants


def test_another_configuration_decides_anew(stage: Stage) -> None:
    """A model that is gone from the configuration is not called with what was decided before."""
    agreement = stage.shim._session._agreement
    assert stage.shim._session.call("remote", "x", {}).remote
    mapping = agreement.config.to_mapping()
    del mapping["models"]["remote"]
    agreement.set(type(agreement.config).from_mapping(mapping))
    with pytest.raises(UnknownModel):
        stage.shim._session.call("remote", "x", {})


def test_a_closed_shim_takes_no_call_that_it_took_before(stage: Stage) -> None:
    """The error is that of every call after `close`."""
    stage.shim._session.call("a", "x", {})
    stage.shim.close()
    with pytest.raises(InvalidRequest, match="closed"):
        stage.shim._session.call("a", "x", {})


def test_seeds_without_end_take_no_memory_without_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept has a bound."""
    monkeypatch.setattr(session, "SETTLED_KEPT", 8)
    for seed in range(50):
        stage.shim._session.call("a", "x", {"seed": seed})
    assert len(stage.shim._session._settled) <= 8


def test_options_are_written_for_each_endpoint_by_its_features() -> None:
    """An endpoint without grammars refuses what one with grammars was just sent."""
    request = ChatRequest("x", FixedOptions({"grammar": 'root ::= "a"'}))
    able = Endpoint("http://e", "m", "llama.cpp", "/s", capabilities=Capabilities(grammar=True))
    assert b'"grammar"' in chat_body(able, request, stream=False)
    assert b'"model":"m"' in chat_body(able, request, stream=True)
    with pytest.raises(InvalidRequest, match="grammar"):
        chat_body(Endpoint("http://far", "m", "openai"), request, stream=False)
