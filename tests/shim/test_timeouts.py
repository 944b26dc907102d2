"""Time-outs of a request: those of the call, of its model, of the kind of engine that answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from backends.openai import Timeouts
from backends.openai.options import split_options
from shim import Config, EngineTimeout, InvalidRequest, Shim
from shim.calls.options.own_options import OWN_OPTIONS, timeouts_of
from tests.engines.hostile import listening, read_request
from tests.shim.conftest import Stage


def _timeouts(entry: dict[str, Any], **options: Any) -> Timeouts | None:
    own, _ = split_options(options, OWN_OPTIONS)
    models = {"m": entry}
    found = timeouts_of(Config.from_mapping({"models": models}).models["m"], own)
    assert own.keys() <= {"priority", "deadline_s"}
    return found


HERE = {"path": "/m.gguf"}
FAR = {"url": "http://far"}


def test_an_engine_here_may_take_as_long_as_it_gets_on() -> None:
    """The keeper ends one that does not; an endpoint elsewhere has the usual bounds."""
    here = _timeouts(HERE)
    assert here is not None
    assert (here.first_token_s, here.between_tokens_s) == (math.inf, math.inf)
    assert here.answer_s == here.stream_s == Timeouts().stream_s
    assert _timeouts(FAR) is None


def test_a_models_timeouts_hold_for_its_calls() -> None:
    """As texts or seconds; what is left out is as it was."""
    usual = Timeouts()
    found = _timeouts({**FAR, "first_token_timeout": "2h", "answer_timeout": 7})
    assert found == Timeouts(usual.connect_s, 7200.0, usual.between_tokens_s, 7.0, 7.0)
    assert _timeouts({**FAR, "connect_timeout": "30s"}) == Timeouts(connect_s=30.0)
    assert _timeouts({**FAR, "connect_timeout": 3}, connect_timeout=2) == Timeouts(connect_s=2.0)


def test_a_calls_timeouts_come_before_its_models() -> None:
    """Each for itself, NumPy's numbers too; both for engines here and elsewhere."""
    entry = {**HERE, "first_token_timeout": 1, "token_timeout": 2}
    found = _timeouts(entry, first_token_timeout=np.float32(5), deadline_s=9)
    assert found is not None
    assert (found.first_token_s, found.between_tokens_s) == (5.0, 2.0)


@pytest.mark.parametrize("value", [0, -1, True, "1s", math.inf, math.nan])
def test_a_timeout_that_is_none_is_refused(value: Any) -> None:
    """By its name."""
    with pytest.raises(InvalidRequest, match="token_timeout"):
        _timeouts(HERE, token_timeout=value)


def test_a_timeout_of_a_call_reaches_the_endpoint() -> None:
    """An endpoint that says nothing is given up when the call says so."""

    def serve(connection: Any) -> None:
        read_request(connection)
        connection.recv(1)

    with listening(serve) as endpoint, Shim({"models": {"m": {"url": endpoint.base_url}}}) as shim:
        with pytest.raises(EngineTimeout) as whole:
            shim.chat("m", "x", answer_timeout=0.05)
        with pytest.raises(EngineTimeout) as streamed:
            shim.stream("m", "x", first_token_timeout=0.05)
    assert whole.value.facts["limit_s"] == streamed.value.facts["limit_s"] == 0.05


def test_a_timeout_is_the_clients_and_not_the_keepers(stage: Stage) -> None:
    """The keeper is not told of it, and the call is served."""
    assert stage.shim.chat("a", "x", answer_timeout=60, token_timeout=50).content
