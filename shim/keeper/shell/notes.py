"""Moments that a trace shows beside loads and evictions, from the core's events and actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from budget import actions as act
from budget import events as ev
from shim.keeper.shell.history import History, NoteStory
from traces import names


class Notes:
    """Puts denials, deaths, failed loads, corrections, preemptions and low memory into the history.

    Args:
        history: gets them.
        label: an engine's models, by its id.
    """

    def __init__(self, history: History, label: Callable[[str], str]) -> None:
        self._history = history
        self._label = label
        self._yielded: set[str] = set()
        """Requests that gave their lease back and wait to have it again."""

    def saw(self, event: ev.Event, actions: list[act.Action]) -> None:
        """Note what an event was, and what came of it."""
        match event:
            case ev.EngineGone():
                self._note(names.DIED, event.error, model=self._label(event.engine_id))
            case ev.LoadEndedBadly():
                device, model = event.refused_device or "", self._label(event.engine_id)
                self._note(names.LOAD_FAILED, event.error, model=model, device=device)
            case ev.EngineEstimated():
                self._note(names.CORRECTED, {}, model=self._label(event.engine_id))
            case ev.LeaseYielded():
                self._yielded.add(event.request_id)
                self._note(names.PREEMPTED, {"message": event.request_id})
            case ev.LeaseEnded() | ev.RequestCancelled():
                self._yielded.discard(event.request_id)
        for action in actions:
            self._of_action(event, action)

    def _of_action(self, event: ev.Event, action: act.Action) -> None:
        match action:
            case act.Deny():
                self._yielded.discard(action.request_id)
                model = event.model if isinstance(event, ev.RequestArrived) else ""
                self._note(names.DENIED, action.error, model=model)
            case act.Grant() if action.request_id in self._yielded:
                self._yielded.discard(action.request_id)
                self._note(names.RESUMED, {"message": action.request_id}, model=action.model)
            case act.Alert():
                over = "over its limit" if action.over else "back under its limit"
                books = {"reserved": action.reserved_bytes, "allowed": action.ceiling_bytes}
                self._note(names.OVER_LIMIT, {"message": over}, device=action.device, numbers=books)
            case act.LowMemory():
                low = "less free than its reserve" if action.low else "its reserve free again"
                free = {"free": action.free_bytes, "reserve": action.reserve_bytes}
                self._note(names.LOW, {"message": low}, device=action.device, numbers=free)

    def _note(
        self,
        kind: str,
        said: Mapping[str, Any],
        *,
        model: str = "",
        device: str = "",
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        detail = ": ".join(str(said[key]) for key in ("error", "message") if said.get(key))
        note = NoteStory(time.monotonic_ns(), kind, model, device, detail, numbers or {})
        self._history.notes.append(note)
