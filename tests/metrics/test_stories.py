"""What ended in the keeper is told once, whatever way it ended and whatever its client says of it."""

from __future__ import annotations

from typing import Any

import pytest

from budget import actions as act
from budget import events as ev
from shim.keeper.shell.history import EvictStory, History, LoadStory
from shim.keeper.shell.stories import (
    CLIENT_GONE,
    DeathStory,
    DenialStory,
    RequestStory,
    Stories,
    Story,
    request_story,
)

ERROR = {"error": "EngineDied", "message": "", "hint": "", "facts": {}}


def grant(number: int, client: str = "c1", **changes: Any) -> act.Grant:
    """The grant of request `r{number}`, two seconds after it was asked for."""
    fields: dict[str, Any] = {"slot": 0, "cold": False, "model": "m"} | changes
    return act.Grant(
        f"r{number}", client, engine_id="e", generation=1, arrived_at=1.0, granted_at=3.0, **fields
    )


def arrived(number: int, client: str = "c1") -> ev.RequestArrived:
    """The arrival of request `r{number}`."""
    return ev.RequestArrived(f"r{number}", client, "m")


class Told:
    """Stories with a listener that keeps them."""

    def __init__(self) -> None:
        self.history = History()
        self.stories = Stories(self.history, lambda _: "m", lambda _: "llama.cpp")
        self.told: list[Story] = []
        self.stories.listeners.append(self.told.append)

    def saw(self, event: ev.Event, *actions: act.Action) -> None:
        """An event, and what the core answered."""
        self.stories.saw(event, list(actions))


def test_a_request_is_told_when_its_lease_ends() -> None:
    """With what its client said, and once."""
    it = Told()
    it.saw(arrived(1), grant(1))
    it.stories.spent("r1", {"prompt_n": 4, "cache_n": 6, "predicted_n": 3, "prompt_ms": 10.0})
    it.saw(ev.LeaseEnded("r1", "c1"))
    it.saw(ev.LeaseEnded("r1", "c1"))
    (story,) = it.told
    assert isinstance(story, RequestStory)
    assert (story.prompt_tokens, story.cached_tokens, story.output_tokens) == (10, 6, 3)
    assert (story.arrived_ns, story.granted_ns) == (1_000_000_000, 3_000_000_000)
    assert story.first_token_ns == 3_010_000_000
    assert story.error is None


def test_a_request_that_yields_is_told_once_at_its_end() -> None:
    """It is granted twice, and its time goes on in between."""
    it = Told()
    it.saw(arrived(1), grant(1))
    it.saw(ev.LeaseYielded("r1", "c1"))
    it.saw(ev.TimerDue(), grant(1, slot=1))
    it.saw(ev.LeaseEnded("r1", "c1"))
    assert [story.slot for story in it.told if isinstance(story, RequestStory)] == [0]


def test_clients_that_go_end_their_requests_and_no_others() -> None:
    """Those that have a lease are told; those that wait are forgotten."""
    it = Told()
    it.saw(arrived(1), grant(1))
    it.saw(arrived(2, "c2"), grant(2, "c2"))
    it.saw(arrived(3))
    it.saw(ev.ClientGone("c1"))
    it.saw(ev.TimerDue(), act.Deny("r3", "c1", ERROR))
    assert [(s.request_id, s.error) for s in it.told if isinstance(s, RequestStory)] == [
        ("r1", CLIENT_GONE)
    ]
    assert len(it.told) == 1


def test_what_is_denied_taken_back_or_dead_has_the_type_of_its_error() -> None:
    """One story each; a request that was cancelled while it waited is none."""
    it = Told()
    it.saw(arrived(1), act.Deny("r1", "c1", ERROR))
    it.saw(arrived(2), grant(2))
    it.saw(ev.EngineGone("e", 1, ERROR), act.Revoke("r2", "c1", ERROR))
    it.saw(arrived(3))
    it.saw(ev.RequestCancelled("r3"))
    assert [type(story) for story in it.told] == [DenialStory, DeathStory, RequestStory]
    assert {getattr(story, "error", None) for story in it.told} == {"EngineDied"}


def test_loads_and_evictions_are_told_at_their_end() -> None:
    """Those of that generation, from the history."""
    it = Told()
    for generation in (1, 2):
        it.history.loads.append(LoadStory(f"e/{generation}", "e", "m", "host", 1, "", 1, 2))
        it.history.evictions.append(
            EvictStory(f"e/{generation}/end", "e", "m", "host", 1, "", 1, 2)
        )
    it.saw(ev.LoadFinished("e", 1))
    it.saw(ev.UnloadFinished("e", 1))
    it.saw(ev.LoadEndedBadly("e", 9, ERROR))
    assert it.told == [it.history.loads[0], it.history.evictions[0]]


def test_what_keeps_a_model_loaded_is_no_request() -> None:
    """`load` and `pin` have no lease and so no end."""
    it = Told()
    it.saw(arrived(1), grant(1, slot=None))
    it.saw(ev.ClientGone("c1"))
    assert it.told == []


@pytest.mark.parametrize(
    "spent",
    [
        {"prompt_n": -1, "cache_n": float("nan"), "predicted_n": "many", "first_ms": float("inf")},
        {"prompt_n": 1e300, "prompt_ms": None, "predicted_ms": "soon", "error": 7},
        {},
    ],
)
def test_what_a_client_says_is_taken_for_what_it_may_be(spent: dict[str, Any]) -> None:
    """Any figure that cannot be is left out; the first token lies between the grant and the end."""
    story = request_story(grant(1), "llama.cpp", spent, None)
    assert (story.prompt_tokens, story.cached_tokens, story.output_tokens) == (None, None, None)
    assert story.first_token_ns is None
    early = request_story(grant(1), "llama.cpp", {**spent, "first_ms": 0.0}, None)
    assert early.first_token_ns == early.granted_ns
