"""The plan's file: `plan.json` in the state folder, mode 0600, written whole.

Each entry is serialised by itself, keys in order, so that an entry that is kept keeps its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.footprint.cache import write_whole
from backends.hardware import difference, hardware, llama_build
from budget.errors import ConfigError, KeepwarmError
from budget.planning.machine import MachineFigures
from shim.paths import state_dir
from shim.planned.entry import Entry

FORMAT: Final = 1


def plan_path() -> Path:
    """Where the plan is."""
    return state_dir() / "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan as it was written.

    `entries` are the raw JSON values by key; `decisions` what was chosen for all together then, by
    key. `effort` is `quick` or `full`.
    """

    hardware: Mapping[str, Any]
    build: str
    effort: str
    machine: MachineFigures
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def entry(self, key: str) -> Entry | None:
        """A model's entry; None when there is none, or it is damaged."""
        data = self.entries.get(key)
        if data is None:
            return None
        try:
            return Entry.from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def write_plan(plan: Plan, path: Path | None = None) -> Path:
    """Write a plan in place of the one before; returns its path.

    Raises:
        ConfigError: the folder cannot be written.
    """
    target = path or plan_path()
    try:
        write_whole(target, to_text(plan))
    except OSError as error:
        raise ConfigError(
            f"the plan {target} cannot be written: {error.strerror}.",
            hint="Set XDG_STATE_HOME to a folder of yours.",
            file=str(target),
        ) from error
    return target


def to_text(plan: Plan) -> str:
    """The file's text: one entry a line, so that a changed entry changes its own line only."""
    head = {
        "format": FORMAT,
        "hardware": dict(plan.hardware),
        "build": plan.build,
        "effort": plan.effort,
        "machine": plan.machine.to_json(),
        "decisions": dict(plan.decisions),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(head[name], sort_keys=True)}" for name in head]
    rows = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in plan.entries.items()]
    return "{\n" + ",\n".join(lines) + ',\n"models": {\n' + ",\n".join(sorted(rows)) + "\n}}\n"


def read_plan(path: Path | None = None) -> Plan | None:
    """The plan that is there; None when there is none.

    Raises:
        ConfigError: it cannot be read, or is not a plan of this version. Facts: `file`.
    """
    source = path or plan_path()
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}, where {FORMAT} is known")
        return Plan(
            dict(data["hardware"]),
            str(data["build"]),
            str(data["effort"]),
            MachineFigures.from_json(data["machine"]),
            dict(data["models"]),
            dict(data["decisions"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, KeepwarmError) as error:
        raise ConfigError(
            f"the plan {source} is damaged: {type(error).__name__}: {error}.",
            hint="`keepwarm build` writes it anew.",
            file=str(source),
        ) from None


def refusal(plan: Plan) -> str | None:
    """Why a plan is not good here: another machine or another llama.cpp; None when it is."""
    here = hardware()
    if dict(plan.hardware) != here:
        return f"it was made on other hardware: {difference(dict(plan.hardware), here)}"
    now = llama_build()
    if plan.build != now:
        return f"it was made with llama.cpp {plan.build}; here is {now}"
    return None


def usable_plan(path: Path | None = None) -> tuple[Plan | None, str]:
    """The plan if it is good here, and why it is not otherwise (empty when there is none at all)."""
    try:
        plan = read_plan(path)
    except ConfigError as error:
        return None, str(error)
    if plan is None:
        return None, ""
    reason = refusal(plan)
    return (plan, "") if reason is None else (None, f"the plan is not used: {reason}.")
