"""Tells on a terminal what a command waits for: the keeper, a load, a download."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from budget.errors import EndpointUnavailable, KeepwarmError
from shim.cli.console.output import StatusLine, size
from shim.cli.console.running import ask_running, engine_row, keepers_name
from shim.config import Config, ModelEntry, fetch_hub_file
from shim.wire.fingerprint import called

FIRST_LOOK_S: Final = 0.25
LOOK_EVERY_S: Final = 0.2


class WaitingLine:
    """While entered, it tells on a status line what a request for a model waits for.

    It asks the running keeper over a connection of its own, and only after a quarter of a second: a
    request for a warm model costs nothing.
    """

    def __init__(self, line: StatusLine, model: str, config: Config, runtime: Path) -> None:
        self._line = line
        self._model = model
        self._runtime = runtime
        self._said = called(config, model)
        self._over = threading.Event()
        self._says = threading.Lock()

    def __enter__(self) -> Self:
        if self._line.shown:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.end()

    def end(self) -> None:
        """Say no more, and take the line away. Idempotent.

        The keeper may be silent, so the thread that asks it is not waited for.
        """
        if not self._over.is_set():
            with self._says:
                self._over.set()
                self._line.clear()

    def _watch(self) -> None:
        since = time.monotonic()
        pause_s = FIRST_LOOK_S
        while not self._over.wait(pause_s):
            pause_s = LOOK_EVERY_S
            try:
                status = ask_running("status", runtime=self._runtime)
            except KeepwarmError:
                continue
            said = waiting_for(status, self._model, os.getpid(), self._said)
            text = f"{said} ({time.monotonic() - since:.0f} s)"
            with self._says:
                if not self._over.is_set():
                    self._line.show(text, loaded_share(status, self._said))


def waiting_for(
    status: Mapping[str, Any] | None, model: str, pid: int, said: str | None = None
) -> str:
    """What a process's request for a model waits for.

    Args:
        status: the keeper's; None: no keeper runs yet.
        model: the model's name for people.
        pid: the process.
        said: what the keeper is asked for, where that is another name.
    """
    if status is None:
        return "starting the keeper and measuring the models"
    name = keepers_name(status, said or model)
    row = engine_row(status, name)
    if row is None:
        return f"reading {model}"
    state = row["state"]
    if state == "loading":
        share = f" {row['load_fraction']:.0%}" if row["load_fraction"] else ""
        return f"loading {model}{share} of {size(sum(row['bytes'].values()))}"
    if state == "evicting":
        return f"{model} is leaving; it will be loaded again"
    queue = status["queue"]
    place = next((n for n, q in enumerate(queue) if (q["model"], q["pid"]) == (name, pid)), None)
    if place is not None:
        others = f", after {place} other{'s' if place > 1 else ''} in line" if place else ""
        return f"{model} waits for {queue[place]['waits_for']}{others}"
    if state == "leased":
        return f"{model} is evaluating the prompt"
    return f"{model} is {state}"


def loaded_share(status: Mapping[str, Any] | None, said: str) -> float | None:
    """How much of a model that loads is read, by the keeper's status. `said`: as for `engine_row`."""
    row = engine_row(status, said) if status else None
    return row["load_fraction"] if row and row["state"] == "loading" else None


def fetch_first(line: StatusLine, entry: ModelEntry) -> None:
    """Download a model's file of the Hugging Face Hub here, visibly, unless the cache has it.

    Args:
        line: shows how far the download is, or elsewhere the name of every file that is downloaded.
        entry: the model; nothing happens for one that has no `hf`.

    Raises:
        KeepwarmError: why it cannot be downloaded.
    """
    if entry.hf is None:
        return
    try:
        fetch_hub_file(entry.hf, offline=True)
    except EndpointUnavailable:
        begun: set[str] = set()

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in begun:
                begun.add(name)
                line.tell(f"downloading {name}")
            whole = f" of {size(total)}" if total else ""
            line.show(f"downloading {name}: {size(done)}{whole}", done / total if total else None)

        try:
            fetch_hub_file(entry.hf, on_progress=progress)
        finally:
            line.clear()
