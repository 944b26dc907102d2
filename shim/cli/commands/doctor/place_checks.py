"""What the doctor says of places: folders, the running keeper, and the locks of devices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backends.machine.files.file_locks import KEEPER_LOCK, FileLock, is_held
from backends.machine.files.folders import user_folder
from backends.machine.files.mounts import is_far
from budget.errors import KeepwarmError
from shim.cli.commands.doctor.finding import Finding, error_found
from shim.cli.console.output import size, span
from shim.cli.console.running import ask_running, unavailable
from shim.config import Config
from shim.keeper.process.device_locks import device_holders
from shim.paths import STATE_VARIABLE, cache_dir, runtime_dir, state_dir

ROOM_BYTES: Final = 100 << 20


def check_folders(config: Config) -> Iterator[Finding]:
    """The folders of the keeper's socket, of logs and of caches: writable, and with room."""
    yield _room("runtime folder", runtime_dir())
    wanted, used = user_folder(STATE_VARIABLE, ".local/state"), state_dir()
    if used != wanted:
        yield Finding(
            "state folder",
            "warn",
            f"{wanted} cannot be written: logs and what is learned are in {used}",
            f"Set ${STATE_VARIABLE} to a folder of yours.",
        )
    else:
        yield _room("state folder", used)
    yield _room("cache folder", cache_dir())
    if config.kv.enabled and config.kv.folder is not None:
        yield _room("KV folder", config.kv.folder)


def _room(name: str, folder: Path) -> Finding:
    """Whether a folder, or the nearest one above it that is there, can be written and has room."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    facts = {"folder": str(folder)}
    if not os.access(there, os.W_OK | os.X_OK):
        text = f"{there} cannot be written"
        return Finding(name, "bad", text, "Change its owner or mode, or choose another.", facts)
    free = shutil.disk_usage(there).free
    text = f"{folder}, {size(free)} free"
    if free < ROOM_BYTES:
        return Finding(name, "warn", text, "Make room there.", {**facts, "free_bytes": free})
    if is_far(there):
        todo = "Logs and measurements wait for the network there; a local folder is faster."
        return Finding(name, "warn", f"{text}, on another machine", todo, facts)
    return Finding(name, "ok", text, facts={**facts, "free_bytes": free})


def check_keeper(_: Config) -> Iterator[Finding]:
    """Whether a keeper runs, answers, and is well."""
    runtime = runtime_dir()
    status = ask_running("status", runtime=runtime)
    if status is None:
        held = is_held(runtime / KEEPER_LOCK)
        holder = FileLock(runtime / KEEPER_LOCK).holder()
        yield (
            Finding(
                "keeper",
                "bad",
                f"{holder} holds the keeper's lock and does not listen",
                f"Wait until it has started or ended, or end it: {holder.end_command()}.",
            )
            if held
            else Finding("keeper", "ok", "none runs; the first request starts one")
        )
        return
    keeper = status["keeper"]
    text = f"process {keeper['pid']}, up {span(keeper['uptime_s'])}"
    yield Finding("keeper", "ok", text, facts={"pid": keeper["pid"]})
    for row in keeper["background"]:
        text = f"it fails at {row['task']}: {row['text']}"
        yield Finding("keeper", "bad", text, "See `keepwarm keeper log`.")
    if keeper["faults"]:
        kinds = ", ".join(row["kind"] for row in keeper["faults"])
        yield Finding("keeper", "warn", f"it had faults: {kinds}", "See `keepwarm ps`.")
    for name, error in status["unavailable"].items():
        text = f"{name} {unavailable(error)}: {error['message']}"
        yield Finding("keeper", "warn", text, error["hint"])


def check_locks(config: Config) -> Iterator[Finding]:
    """Whether another keeper books the devices of the configuration."""
    try:
        holders = device_holders(config)
    except KeepwarmError as error:
        yield error_found("devices", error)
        return
    mine = str(runtime_dir())
    others = {name: holder for name, holder in holders.items() if holder.folder != mine}
    if not others:
        yield Finding("devices", "ok", "no other keeper books the devices of this configuration")
    for name, holder in others.items():
        end = holder.end_command()
        yield Finding(
            "devices",
            "bad",
            f"{name} is booked by another keeper ({holder})",
            f"End that one{f' with {end}' if end else ''}, or choose another [budget] device.",
            {"holder": holder.as_dict()},
        )
