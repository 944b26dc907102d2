"""What a trace shows beside loads and evictions is kept as it happens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from budget import actions as act
from budget import events as ev
from shim.keeper.shell.history import History, LoadStory
from shim.keeper.shell.notes import Notes

ERROR = {"error": "DoesNotFit", "message": "It is too large."}


def _seen(event: ev.Event, actions: Sequence[act.Action] = ()) -> list[tuple[str, str, str, str]]:
    history = History()
    Notes(history, lambda engine_id: f"model of {engine_id}").saw(event, list(actions))
    return [(note.kind, note.model, note.device, note.detail) for note in history.notes]


ARRIVED = ev.RequestArrived("r1", "c1", "m")
SAID = "DoesNotFit: It is too large."


@pytest.mark.parametrize(
    ("event", "actions", "kept"),
    [
        (ARRIVED, [act.Deny("r1", "c1", ERROR)], ("denied", "m", "", SAID)),
        (ev.TimerDue(), [act.Deny("r1", "c1", ERROR)], ("denied", "", "", SAID)),
        (ev.EngineGone("e", 1, ERROR), [], ("died", "model of e", "", SAID)),
        (
            ev.LoadEndedBadly("e", 1, ERROR, out_of_memory=True, refused_device="cuda:0"),
            [],
            ("load_failed", "model of e", "cuda:0", SAID),
        ),
        (ev.EngineEstimated("e", ()), [], ("corrected", "model of e", "", "")),
        (
            ev.TimerDue(),
            [act.LowMemory("host", low=True, free_bytes=1, reserve_bytes=2)],
            ("low_memory", "", "host", "less free than its reserve"),
        ),
        (
            ev.TimerDue(),
            [act.Alert("host", over=True, reserved_bytes=3, ceiling_bytes=2)],
            ("over_limit", "", "host", "over its limit"),
        ),
    ],
)
def test_what_happened_is_kept_with_its_model_device_and_cause(
    event: ev.Event, actions: list[act.Action], kept: tuple[str, str, str, str]
) -> None:
    """Each kind under the name that it has on a trace."""
    assert _seen(event, actions) == [kept]


def test_a_preempted_request_is_seen_to_go_on_once() -> None:
    """The grant of a lease that was yielded is its going on; other grants are nothing of note."""
    history = History()
    notes = Notes(history, str)
    grant = act.Grant("r1", "c1", "m", "e", 1, 0, cold=False, arrived_at=0.0, granted_at=1.0)
    notes.saw(ARRIVED, [grant])
    notes.saw(ev.LeaseYielded("r1", "c1"), [])
    notes.saw(ev.TimerDue(), [grant])
    notes.saw(ev.TimerDue(), [grant])
    assert [(note.kind, note.detail) for note in history.notes] == [
        ("preempted", "r1"),
        ("resumed", "r1"),
    ]


def test_a_loads_speed_is_told_beside_the_best_of_its_kind() -> None:
    """Of the weights where their time is known, else of the whole load; disks and memory apart."""
    history = History()
    second = 10**9

    def load(seconds: float, storage: str, phases: dict[str, int], disk: str = "8:1") -> LoadStory:
        story = LoadStory("l", "e", "m", "host", 1, "", 0, storage=storage, file_bytes=100)
        story.ready_ns, story.phases = int(seconds * second), phases
        history.rate(story, disk)
        return story

    weights = {"weights": 1 * second, "buffers": 3 * second}
    loads = [
        load(4, "cold", weights),
        load(4, "cold", {}),
        load(1, "cold", {}, "8:2"),
        load(1, "staged", {}),
        load(2, "staged", {}, "8:2"),
    ]
    assert [(one.bytes_per_s, one.best_bytes_per_s) for one in loads] == [
        (50, 0),
        (25, 50),
        (100, 0),
        (100, 0),
        (50, 100),
    ]
