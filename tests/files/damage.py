"""Every file of state that keepwarm reads back, and every kind of damage that one can have."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import BufferBytes, DryRun
from backends.footprint.learned import LearnedStore
from backends.footprint.machine_overhead import measured_overhead, store_overhead
from backends.measure.hardware import hardware, llama_build
from budget.eviction.forecast.forecaster import Forecaster
from budget.eviction.policies import make_policy
from budget.eviction.policies.forecast import Forecast
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from budget.memory.overhead import DEFAULT_OVERHEAD
from budget.placement.machine_rates import LoadFigures, MachineFigures, SideFigures
from shim.config import Config
from shim.config.trust import TrustedFiles
from shim.keeper.catalog.corrections import Corrections, Seen, learned_store
from shim.keeper.kv.engine_folder import WARM, EngineFolder
from shim.keeper.kv.saved_files import KvFiles
from shim.keeper.shell.load_speeds import LoadSpeeds
from shim.keeper.shell.policy_state import experience_file, recall, remember
from shim.paths import runtime_dir, state_dir
from shim.placement.from_plan import Asked, decide
from shim.placement.plan_entry import Entry, FileFacts, PlanPoint, Sizes
from shim.placement.plan_file import PlacementPlan, usable_plan, write_plan
from shim.wire.start_order import IN_FORCE, InForce, Order

KEY = "0123456789abcdef01234567"
ARGS = EngineArgs(n_ctx=512)
PLACED = Placement(ARGS, {HOST: Footprint(80, 10, 5, 5)}, "dry-run")
RUN = DryRun((BufferBytes("CPU", "host", 10, 20, 30),), 4, 8, 2, 256, 0.5)
FIGURES = MachineFigures(
    {HOST: SideFigures({"F16": 1e10, "Q4_K": 8e9}, 0.0, 6e-5)},
    LoadFigures(0.2, {"none": 5e8}, {"none": 2e9}),
    {HOST: 0},
)
ENTRY = Entry(
    (("/m.gguf", 10, 20),),
    FileFacts((Path("/m.gguf"),), "id", "llama", "F16", 16.0),
    2,
    HOST,
    (Sizes(512, 1, (PlanPoint(0, {HOST: Footprint(80, 10, 5, 5)}, ARGS),), (0.01,)),),
    0.5,
)
ASKED = Asked(
    "m-1", None, pinned=False, n_gpu_layers=None, sizes=((512, 1),), stamp=lambda e: e.stamp
)
"""A model of a plan whose file is what it was."""


@dataclass(frozen=True, slots=True)
class StateFile:
    """One kind of state file.

    `readers` are the functions that read it, `write` makes a good one and returns its path, `used` tells
    whether what it says is taken over, `again` only writes it once more. Its user made it (`stays`):
    damaged, it is left where it is. A command writes it (`raises`): that hears when it cannot be written.
    """

    name: str
    readers: tuple[str, ...]
    write: Callable[[], Path]
    used: Callable[[], bool]
    again: Callable[[], object]
    stays: bool = False
    raises: bool = False


def _write_plan() -> Path:
    plan = PlacementPlan(
        hardware(), llama_build(), "quick", FIGURES, {"m-1": ENTRY.to_json()}, {"m-1": {}}
    )
    return write_plan(plan)


def _plan_is_used() -> bool:
    plan, _ = usable_plan()
    return plan is not None and bool(decide(plan, {"m": ASKED}, {HOST: 10_000}).decided)


def _write_policy() -> Path:
    policy = make_policy("forecast")
    assert isinstance(policy, Forecast)
    for number, letter in enumerate("abcabcabd" * 10):
        policy._forecaster.used(letter, float(number))
    remember(policy)
    return experience_file(policy)


def _policy_is_used() -> bool:
    policy = make_policy("forecast")
    if not recall(policy):
        return False
    assert isinstance(policy, Forecast)
    decides_well(policy._forecaster)
    return True


def decides_well(forecaster: Forecaster) -> None:
    """Whatever was taken over, what comes of it are probabilities."""
    for number, letter in enumerate("abcdx" * 8):
        forecaster.used(letter, 1e6 + number)
        assert all(0.0 <= p <= 1.0 for p in forecaster.expectations("abcdxy", 1e6 + number + 0.5))
    json.dumps(forecaster.export_state(), allow_nan=False)


def _write_index() -> Path:
    files = KvFiles.open(state_dir() / "kv", 1 << 20, 60.0)
    assert files is not None
    engine_folder = files.engine_folder(
        KEY, {"stamp": [["/m.gguf", 10, 20]], "engine": "e", "models": ["m"]}
    )
    (engine_folder.folder / WARM).write_bytes(bytes(100))
    engine_folder.add(WARM)
    engine_folder.seal()
    files.close(keep=True)
    return engine_folder.folder / "index.json"


def _index_is_used() -> bool:
    files = KvFiles.open(state_dir() / "kv", 1 << 20, 60.0)
    assert files is not None
    rows = files.rows()
    files.close(keep=True)
    return bool(rows)


def _write_index_again() -> None:
    engine_folder = EngineFolder.look(state_dir() / "kv" / KEY)
    assert engine_folder is not None
    engine_folder.write_index()


def _write_learned_again() -> None:
    store = learned_store()
    (found,) = store.of_file("id")
    store.put(ARGS, found)


def _write_learned() -> Path:
    store = learned_store()
    Corrections(store, "b").observe("m", "id", PLACED, Seen({HOST: 115}, {HOST: 130}))
    (path,) = store.folder.glob("*.json")
    return path


def _learned_is_used() -> bool:
    found = LearnedStore(learned_store().folder).get("id", ARGS, "b")
    return found is not None and found.apply(PLACED).bookings != PLACED.bookings


def _write_footprint() -> Path:
    cache = FootprintCache()
    cache.put("k", RUN)
    return cache.folder / "k.json"


def _write_bytes() -> Path:
    cache = FootprintCache()
    (cache.folder / "b.json").unlink(missing_ok=True)
    cache.bytes_or_measure("b", lambda: {HOST: 9})
    return cache.folder / "b.json"


def _write_other_bytes() -> None:
    assert FootprintCache().bytes_or_measure("c", lambda: {HOST: 9}) == {HOST: 9}


def _bytes_are_used() -> bool:
    measured: list[int] = []

    def measure() -> dict[str, int]:
        measured.append(1)
        return {HOST: 8}

    return FootprintCache().bytes_or_measure("b", measure) == {HOST: 9} and not measured


def _in_force() -> tuple[InForce, Order]:
    """What a crashed keeper left, and the order of a client that read the same file before."""
    runtime = runtime_dir()
    config = Config.from_mapping({"models": {"m": {"path": "/m.gguf"}}})
    return InForce(runtime), Order(config, runtime, automatic=True, read_at=0.0)


def _write_in_force() -> Path:
    force, order = _in_force()
    force.write(order.config)
    return order.runtime / IN_FORCE


def _in_force_is_used() -> bool:
    force, order = _in_force()
    # The same configuration would change nothing.
    other = replace(order, config=Config.from_mapping({"models": {"m": {"path": "/other.gguf"}}}))
    return force.survives(other) is not other


def _trust(path: str = "/a/keepwarm.toml") -> Path:
    trusted = TrustedFiles(state_dir())
    trusted.trust(Path(path), b"content")
    return trusted.path


def _write_speeds() -> Path:
    speeds = LoadSpeeds()
    speeds.saw("8:1", 2e9)
    speeds.remember()
    return state_dir() / "load-speeds.json"


def _speeds_are_used() -> bool:
    speeds = LoadSpeeds()
    speeds.recall()
    return speeds.saw("8:1", 1e9) == 2e9


STATE_FILES = (
    StateFile(
        "configuration in force",
        ("shim.wire.start_order:survives", "shim.wire.start_order:read"),
        _write_in_force,
        _in_force_is_used,
        _write_in_force,
    ),
    StateFile(
        "trusted files",
        ("shim.config.trust:_read",),
        _trust,
        lambda: TrustedFiles(state_dir()).digest(Path("/a/keepwarm.toml")) is not None,
        lambda: _trust("/b/keepwarm.toml"),
        raises=True,
    ),
    StateFile(
        "plan",
        ("shim.placement.plan_file:read_plan",),
        _write_plan,
        _plan_is_used,
        _write_plan,
        stays=True,
        raises=True,
    ),
    StateFile(
        "policy",
        ("shim.keeper.shell.policy_state:recall",),
        _write_policy,
        _policy_is_used,
        _write_policy,
    ),
    StateFile(
        "speeds of loads",
        ("shim.keeper.shell.load_speeds:recall",),
        _write_speeds,
        _speeds_are_used,
        _write_speeds,
    ),
    StateFile(
        "index of KV state",
        ("shim.keeper.kv.engine_folder:read", "shim.keeper.kv.engine_folder:look"),
        _write_index,
        _index_is_used,
        _write_index_again,
    ),
    StateFile(
        "learned bytes",
        ("backends.footprint.learned:_read",),
        _write_learned,
        _learned_is_used,
        _write_learned_again,
    ),
    StateFile(
        "cached footprint",
        ("backends.footprint.cache:read", "backends.footprint.cache:get"),
        _write_footprint,
        lambda: FootprintCache().get("k") == RUN,
        _write_footprint,
    ),
    StateFile(
        "cached bytes",
        ("backends.footprint.cache:bytes_or_measure",),
        _write_bytes,
        _bytes_are_used,
        _write_other_bytes,
    ),
    StateFile(
        "engine overhead",
        ("backends.footprint.machine_overhead:measured_overhead",),
        lambda: store_overhead(replace(DEFAULT_OVERHEAD, base_bytes=7_000_000)),
        lambda: measured_overhead() is not None,
        lambda: store_overhead(replace(DEFAULT_OVERHEAD, base_bytes=8_000_000)),
        raises=True,
    ),
)

_NUMBER = re.compile(rb'(?<![\w"./-])-?\d+(\.\d+)?(e[+-]?\d+)?(?![\w"./-])')


def _numbers(value: bytes) -> Callable[[bytes], bytes]:
    return lambda good: _NUMBER.sub(value, good)


CONTENTS: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "one byte short": lambda good: good.rstrip()[:-1],
    "deep lists": lambda _good: b"[" * 5000 + b"]" * 5000,
    "deep objects": lambda _good: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "infinite": _numbers(b"1e999"),
    "not a number": _numbers(b"NaN"),
    "huge integers": _numbers(b"9" * 30),
    "endless integers": _numbers(b"9" * 5000),
    "negative": _numbers(b"-1"),
    "texts for numbers": _numbers(b'"1"'),
    "null": lambda _good: b"null",
    "true": lambda _good: b"true",
    "a list": lambda _good: b"[1, 2]",
    "an empty object": lambda _good: b"{}",
    "another encoding": lambda good: b"\xff\xfe" + good.decode().encode("utf-16-le"),
    "zeros": lambda _good: bytes(4096),
}


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "photo").write_text("mine")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100_000_000)


THINGS: Mapping[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "100 MB": _large,
}
"""What lies in the place of the file."""

DAMAGES = (*CONTENTS, *THINGS)


def damage(path: Path, kind: str) -> None:
    """Damage a good file."""
    good = path.read_bytes()
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind](good))
        return
    path.unlink()
    THINGS[kind](path)
