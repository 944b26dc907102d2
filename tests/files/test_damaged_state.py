"""Damaged state never keeps keepwarm from starting, is never believed, and is said in one line each."""

from __future__ import annotations

import ast
import asyncio
import copy
import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from backends.footprint.machine_overhead import store_overhead
from backends.machine.files import whole_files as files
from backends.measure.whole_machine import MachineMeasure
from backends.scripted import ScriptedEngine
from budget.eviction.policies import make_policy
from budget.footprint import HOST
from budget.memory.overhead import DEFAULT_OVERHEAD
from shim.cli import main
from shim.config import Config
from shim.keeper.catalog.catalog import CatalogEngine, build_catalog
from shim.keeper.catalog.corrections import Corrections, Seen
from shim.keeper.keeper import Keeper
from shim.keeper.shell.policy_state import recall, remember
from shim.placement import build_plan as building
from shim.placement.build_plan import PlanBuilder
from shim.placement.plan_file import write_plan
from tests.files.damage import DAMAGES, FIGURES, STATE_FILES, StateFile, damage

NO_STATE = frozenset({"backends/machine/files/whole_files.py", "shim/wire/launch.py"})
"""Where files are renamed otherwise: where it is right, and where a log is put aside."""
ROOT = Path(__file__).resolve().parents[2]
READERS = frozenset({"read_shape", "parse_state"})
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 0.5, 1e15, 1e300, 10**18, 10**38),
    *("", "x", [], {}, [[]], {"a": 1}, ["a"] * 50),
)


@pytest.fixture(autouse=True)
def places(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own, whose paths are short enough for sockets."""
    move_to(runtime_dir, monkeypatch)
    return runtime_dir


def functions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The names and bodies of a module's functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def reads_state(call: ast.AST) -> bool:
    """Whether an expression reads a state file, itself or through a `JsonFolder` in `_files`."""
    if not isinstance(call, ast.Call):
        return False
    name = call.func
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Attribute):
        return name.attr == "read" and name.value.attr == "_files"
    return isinstance(name, ast.Name) and name.id in READERS


def test_every_reader_of_state_has_a_row_in_the_table() -> None:
    """A new state file is added to `tests/files/damage.py`, so that its damage is tried here."""
    found = set()
    for package in ("backends", "shim", "harness"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path == ROOT / "backends/machine/files/whole_files.py":
                continue
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for name, body in functions(path):
                if any(reads_state(node) for node in ast.walk(body)):
                    found.add(f"{module}:{name}")
    assert found == {reader for row in STATE_FILES for reader in row.readers}


def test_state_is_renamed_into_place_in_one_function_only() -> None:
    """`files.write_whole` syncs the file and its folder; other renames would not."""
    for package in ("backends", "shim"):
        for path in (ROOT / package).rglob("*.py"):
            if str(path.relative_to(ROOT)) in NO_STATE:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                # A path's `replace` has one argument, a text's has two.
                renames = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
                assert not renames, f"{path}:{node.lineno}"
                assert node.func.attr not in {"rename", "renames", "mkstemp"}, (
                    f"{path}:{node.lineno}"
                )


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("row", STATE_FILES, ids=lambda row: row.name)
def test_a_damaged_file_is_said_once_and_not_used(
    row: StateFile, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is set aside with one line, or named by the one reason of the plan, and can be written anew."""
    path = row.write()
    assert row.used()
    damage(path, kind)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "keepwarm"):
        assert not row.used()
    said = [record.getMessage() for record in caplog.records]
    if row.stays:
        assert said == []
        assert path.is_symlink() or path.exists()
        row.write()
    else:
        assert len(said) == 1
        assert path.name in said[0]
        aside = path.with_name(f"{path.name}{files.DAMAGED}")
        assert aside.is_symlink() or aside.exists()
        row.write()
    assert row.used()


@pytest.mark.parametrize("row", STATE_FILES, ids=lambda row: row.name)
def test_a_file_with_one_strange_value_is_refused_or_harmless(
    row: StateFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands in one place of it: nothing raises, and no decision is out of bounds."""
    path, random = row.write(), Random(1)
    good = json.loads(path.read_bytes())
    spots = [*_spots(good)]
    for _ in range(250):
        value = copy.deepcopy(good)
        spot, strange = random.choice(spots), random.choice(STRANGE)
        inside = value
        for key in spot[:-1]:
            inside = inside[key]
        inside[spot[-1]] = strange
        path.write_text(json.dumps(value))
        caplog.clear()
        row.used()
        assert len(caplog.records) <= 1, f"{spot} = {strange!r}"


def _spots(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inside:
        yield (*above, key)
        if isinstance(child, dict | list):
            yield from _spots(child, (*above, key))


@pytest.fixture(scope="module")
def used_folder(tiny_models: dict[str, Path]) -> Iterator[Path]:
    """Folders in which a keeper ran: a file of every kind that a start reads is there and good."""
    with tempfile.TemporaryDirectory(prefix="kw-") as root, pytest.MonkeyPatch.context() as patch:
        move_to(Path(root), patch)
        patch.setattr(MachineMeasure, "run", lambda _self, _devices: FIGURES)
        patch.setattr(building, "calibrate", lambda **_says: DEFAULT_OVERHEAD)
        config = configured(tiny_models)
        plan = PlanBuilder(config).build(None)
        store_overhead(DEFAULT_OVERHEAD)
        catalog = build_catalog(config)
        (engine,) = catalog.configured()
        (placed,) = engine.placements
        whole = placed.total_bytes
        Corrections(catalog.learned, plan.build).observe(
            "m", engine.identity, placed, Seen({HOST: 2 * whole}, {HOST: 2 * whole})
        )
        for row in STATE_FILES:
            if row.name in {"policy", "index of KV state"}:
                row.write()
        write_plan(plan)
        yield Path(root)


def move_to(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let everything that is kept be kept below a folder."""
    for variable, name in (("XDG_STATE_HOME", "s"), ("XDG_CACHE_HOME", "c")):
        patch.setenv(variable, str(root / name))
    patch.setenv("KEEPWARM_RUNTIME_DIR", str(root / "r"))


def configured(tiny_models: dict[str, Path]) -> Config:
    """One small model on the host."""
    return Config.for_files({"m": tiny_models["classifier"]}, budget={"device": "host"})


def state_files(root: Path) -> list[Path]:
    """The files of state below a folder."""
    return sorted(p for p in root.rglob("*.json") if p.is_file())


async def start_and_stop(config: Config, runtime: Path) -> list[str]:
    """The models of a keeper that started."""

    def make(entry: CatalogEngine, folder: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], folder)

    runtime.mkdir(mode=0o700, exist_ok=True)
    keeper = await Keeper.create(config, runtime, make)
    models = [*keeper.catalog.prepared]
    await keeper.close()
    return models


@pytest.mark.real
def test_a_start_without_damage_says_nothing(
    used_folder: Path, places: Path, tiny_models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """All kinds are there, so that the tests below damage what a start reads."""
    shutil.copytree(used_folder, places, dirs_exist_ok=True)
    names = " ".join(str(path.relative_to(places)) for path in state_files(places))
    for part in ("plan.json", "policy-", "/index.json", "learned/", "footprints/", "overhead-"):
        assert part in names
    assert asyncio.run(start_and_stop(configured(tiny_models), places / "r")) == ["m"]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.real
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_keeper_starts_with_everything_damaged(
    kind: str,
    used_folder: Path,
    places: Path,
    tiny_models: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever happened to all of its files at once: one line each, and its models are there."""
    shutil.copytree(used_folder, places, dirs_exist_ok=True)
    broken = state_files(places)
    for path in broken:
        damage(path, kind)
    with caplog.at_level(logging.WARNING, "keepwarm"):
        assert asyncio.run(start_and_stop(configured(tiny_models), places / "r")) == ["m"]
    said = [record.getMessage() for record in caplog.records]
    for path in broken:
        assert sum(str(path) in line for line in said) == 1, f"{path}: {said}"
    assert len(said) == len(broken), said


@pytest.mark.real
@pytest.mark.parametrize("kind", ["deep lists", "a FIFO"])
def test_a_plan_is_shown_with_everything_damaged(
    kind: str, used_folder: Path, places: Path, tiny_models: dict[str, Path]
) -> None:
    """`keepwarm plan` answers; the command that is about the plan's file says what is wrong with it."""
    shutil.copytree(used_folder, places, dirs_exist_ok=True)
    for path in state_files(places):
        damage(path, kind)
    file = places / "keepwarm.toml"
    file.write_text(
        f'[budget]\ndevice = "host"\n[models.m]\npath = "{tiny_models["classifier"]}"\n'
    )
    run = CliRunner().invoke
    done = run(main, ["--config", str(file), "plan", "--json"])
    assert done.exit_code == 0, done.output
    checked = run(main, ["--config", str(file), "build", "--check", "--json"])
    assert json.loads(checked.stdout)["error"]["error"] == "ConfigError"
    assert "plan.json" in json.loads(checked.stdout)["error"]["message"]


@pytest.mark.real
def test_a_keeper_starts_where_nothing_can_be_kept(
    places: Path,
    tiny_models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Read-only folders of state and cache: one line for each of the two, and its models are there."""
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with caplog.at_level(logging.WARNING, "keepwarm"):
        assert asyncio.run(start_and_stop(configured(tiny_models), places / "r")) == ["m"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert "a cached footprint is not kept" in " ".join(said)


@pytest.mark.parametrize("row", STATE_FILES, ids=lambda row: row.name)
def test_a_file_that_cannot_be_read_at_the_moment_is_not_lost(
    row: StateFile,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Too many open files: nothing is deleted, moved or replaced for it, and later it is used again."""
    path, real = row.write(), os.open
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file() and p.name != "lock"}

    def failing(name: str | Path, *args: int, **options: int) -> int:
        if str(name) == str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(name, *args, **options)

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert not row.used()
    assert len(caplog.records) == (0 if row.stays else 1)
    assert {p: p.read_bytes() for p in before} == before
    assert row.used()


def test_what_the_policy_had_learned_is_not_replaced_when_it_could_not_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The keeper that began without it does not write its own few figures over it."""
    row = next(row for row in STATE_FILES if row.name == "policy")
    path, real = row.write(), os.open
    good = path.read_bytes()

    def failing(name: str | Path, *args: int, **options: int) -> int:
        if str(name) == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert not recall(make_policy("forecast"))
    remember(make_policy("forecast"))
    assert path.read_bytes() == good
    policy = make_policy("forecast")
    assert recall(policy)
    remember(policy)
    assert row.used()


@pytest.mark.real
def test_a_start_sweeps_what_was_left_unfinished(
    used_folder: Path, places: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every folder that state is written to, the keeper's own among them."""
    shutil.copytree(used_folder, places, dirs_exist_ok=True)
    (places / "r").mkdir(mode=0o700, exist_ok=True)
    folders = {path.parent for path in state_files(places)} | {places / "r"}
    for folder in folders:
        (folder / ".any.json.999999999-1.new").write_text("")
        (folder / ".not-ours.new").write_text("")
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    asyncio.run(start_and_stop(configured(tiny_models), places / "r"))
    # In a folder of KV state only what has a name of its files is ours.
    left = [path.parent.parent.name for path in places.rglob("*.json.999999999-1.new")]
    assert left == ["kv"]
    assert len(list(places.rglob(".not-ours.new"))) == len(folders)
