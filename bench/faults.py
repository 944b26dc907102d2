"""A campaign of faults against real engines: `python bench/faults.py --faults 300 --seed 1 --seed 2`.

Eight callers (three threads, three tasks, two programs) use four real models under a budget for half of
their bytes, some of them with declared uses, while engines, keeper, callers, files, disks and descriptors
fail at random moments (bench/fault_kinds.py). At the end everything is whole again, every model must
answer, and what is left behind is counted. What no call may do is to fail without a type of keepwarm's
(`untyped`, InternalError among them) or to last longer than its bound (`hung`).

The last line of the output is `{"faults": {KIND: n}, "calls", "answered", "failed": {TYPE: n}, "untyped",
"hung", "ghost_leases", "orphans", "leaks", "longest_call_s", "seconds"}`, over all seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from _common import REPOSITORY, end_on_signals, say
from fault_kinds import KINDS, LONG, Scene

from backends.engine_process.orphans import leftovers
from backends.machine.files.whole_files import is_leftover
from harness.demo.models import make_models
from shim import KeepwarmError, Shim
from shim.cli.console.running import ask_running
from shim.config import load_config
from shim.keeper.catalog.catalog import build_catalog

FILES = {"a": "classifier", "b": "producer", "c": "evaluator", "e": "embedder"}
CALLERS = ("threads", "tasks", "single", "single")
BOUND_S = 60.0
"""No call lasts longer; three declared calls may take three times as long."""
STALL_S = 3.0
PAUSE_S = 0.4
SETTLE_S = 90.0
RARE = {"keeper_stopped": 0.15, "runtime_folder_removed": 0.5}
"""How often a kind that takes long is really done when it is drawn."""


@dataclass
class Tally:
    """What became of the calls, and what was left behind."""

    faults: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    answered: int = 0
    given_up: int = 0
    untyped: int = 0
    hung: int = 0
    ghost_leases: int = 0
    orphans: int = 0
    leaks: int = 0
    longest_call_s: float = 0.0
    seconds: float = 0.0

    def as_json(self) -> str:
        """The last line."""
        told = {**self.__dict__, "faults": dict(self.faults), "failed": dict(self.failed)}
        return json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in told.items()})

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.untyped or self.hung or self.ghost_leases or self.orphans or self.leaks)


class Caller:
    """One calling program, and its calls that have not ended."""

    def __init__(self, mode: str, seed: int, env: dict[str, str], errors: IO[bytes]) -> None:
        command = [sys.executable, str(REPOSITORY / "bench" / "fault_caller.py")]
        self.process = subprocess.Popen(
            [*command, mode, str(seed), "1000000"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self.mode = mode
        self.open: dict[int, dict[str, Any]] = {}


class Campaign:
    """One seed's campaign in a place of its own."""

    def __init__(
        self, root: Path, seed: int, tally: Tally, kinds: Sequence[Callable[[Scene], bool]]
    ) -> None:
        self.root, self.seed, self.tally = root, seed, tally
        self._kinds = kinds
        self.chance = random.Random(seed)
        self.runtime = root / "r"
        self.models: dict[str, Path] = {}
        self.env = {
            **os.environ,
            "KEEPWARM_CONFIG": str(root / "keepwarm.toml"),
            "KEEPWARM_RUNTIME_DIR": str(self.runtime),
            "KEEPWARM_LOCK_DIR": str(root / "locks"),
            "XDG_STATE_HOME": str(root / "state"),
            "FAULTS_STOP_FILE": str(root / "stop"),
        }
        self._callers: list[Caller] = []
        self._seeds = iter(range(seed * 1000, seed * 1000 + 1000))
        self._errors = (root / "callers.err").open("ab")
        self._lock = threading.Lock()
        self._limit = 0

    # What the faults are done to

    def callers(self) -> list[subprocess.Popen[str]]:
        """The calling programs."""
        return [caller.process for caller in self._callers]

    def keeper_pid(self) -> int | None:
        """The keeper of this place, found by its environment: its folder may be gone."""
        marker = f"KEEPWARM_RUNTIME_DIR={self.runtime}".encode()
        for process in psutil.process_iter(["pid", "cmdline"]):
            with contextlib.suppress(OSError, psutil.Error):
                pid = process.pid
                if "shim.keeper" in (process.info["cmdline"] or ()) and marker in Path(
                    f"/proc/{pid}/environ"
                ).read_bytes().split(b"\0"):
                    return pid
        return None

    def configure(self) -> None:
        """Write the configuration; each time some model's context differs."""
        lines = ["[budget]", 'device = "host"', f"limit = {self._limit}", "reserve = 0"]
        lines += ["[keeper]", f"stall_timeout = {STALL_S}"]
        for name, path in self.models.items():
            role = 'role = "embedder"\n' if name == "e" else ""
            context = 512 if name == "e" else self.chance.choice((1024, 1280))
            lines.append(f'[models.{name}]\npath = "{path}"\n{role}context = {context}')
        new = self.root / "keepwarm.toml.new"
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.root / "keepwarm.toml")

    def keepwarm(self, *args: str) -> None:
        """A command of an operator; what it answers is no matter here, that it ends is."""
        command = [sys.executable, "-m", "shim.cli", *args]
        env = {**self.env, "PYTHONPATH": str(REPOSITORY)}
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=env, capture_output=True, timeout=BOUND_S, check=False)
            return
        self.tally.hung += 1
        say(f"hung: keepwarm {' '.join(args)}")

    # Running

    def prepare(self) -> None:
        """Copies of the models, and a budget for half of them."""
        self.runtime.mkdir(mode=0o700)
        made = make_models(REPOSITORY / "models" / "tiny", tiny=True)
        for name, file in FILES.items():
            self.models[name] = self.root / f"{name}.gguf"
            shutil.copyfile(made[file], self.models[name])
        self._limit = 1 << 40
        self.configure()
        catalog = build_catalog(load_config(self.root / "keepwarm.toml"))
        sizes = [engine.placements[0].total_bytes for engine in catalog.engines.values()]
        self._limit = max(sum(sizes) // 2, max(sizes) * 21 // 20)
        self.configure()

    def run(self, faults: int) -> None:
        """Faults until so many were done, beside eight callers."""
        for mode in CALLERS:
            self._start(mode)
        while sum(self.tally.faults.values()) < faults:
            time.sleep(self.chance.expovariate(1 / PAUSE_S))
            kind = self.chance.choice(self._kinds)
            name = kind.__name__
            if self.chance.random() < RARE.get(name, 1.0) and kind(self):
                self.tally.faults[name] += 1
            self._look_after_callers()

    def _start(self, mode: str) -> None:
        caller = Caller(mode, next(self._seeds), self.env, self._errors)
        self._callers.append(caller)
        threading.Thread(target=self._hear, args=(caller,), daemon=True).start()

    def _hear(self, caller: Caller) -> None:
        assert caller.process.stdout is not None
        for line in caller.process.stdout:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            with self._lock:
                if "begin" in told:
                    self.tally.calls += 1
                    caller.open[told["begin"]] = told
                elif "end" in told and told["end"] in caller.open:
                    self._ended(caller.open.pop(told["end"]), told)

    def _ended(self, begun: dict[str, Any], told: dict[str, Any]) -> None:
        tally, seconds = self.tally, told["at"] - begun["at"]
        if begun["kind"] != "plan":
            tally.longest_call_s = max(tally.longest_call_s, seconds)
        if told["outcome"] == "answered":
            tally.answered += 1
        elif told["outcome"] == "given up":
            tally.given_up += 1
        else:
            tally.failed[told["outcome"]] += 1
            if not told["typed"]:
                tally.untyped += 1
                say(f"untyped: {begun['kind']} of {begun['model']}: {told}")

    def _look_after_callers(self) -> None:
        """Replace those that were killed; a call that is over its bound is hung, and its caller ends."""
        for caller in list(self._callers):
            now = time.monotonic()
            with self._lock:
                late = [
                    call
                    for call in caller.open.values()
                    if now - call["at"] > BOUND_S * (3 if call["kind"] == "plan" else 1)
                ]
            if late and caller.process.poll() is None:
                self.tally.hung += len(late)
                say(f"hung: {late}")
                caller.process.send_signal(signal.SIGUSR1)
                time.sleep(0.5)
                caller.process.kill()
            if caller.process.poll() is not None:
                caller.process.wait()
                self._callers.remove(caller)
                self._start(caller.mode)

    # The end

    def settle(self) -> None:
        """Let the callers finish, and count what is left behind."""
        (self.root / "stop").touch()
        until = time.monotonic() + SETTLE_S
        for caller in self._callers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                caller.process.wait(max(1.0, until - time.monotonic()))
                continue
            self.tally.hung += 1
            say(f"hung: a caller in mode {caller.mode} does not end: {caller.open}")
            caller.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            caller.process.kill()
        self.configure()
        self.keepwarm("config", "reload")
        self._every_model_answers()
        self._count_ghosts()
        self.keepwarm("keeper", "stop")
        self._count_leftovers()

    def _every_model_answers(self) -> None:
        os.environ.update(self.env)
        for name in FILES:
            try:
                with Shim(self.root / "keepwarm.toml") as shim:
                    _ = shim.embed(name, "x") if name == "e" else shim.chat(name, "x", max_tokens=1)
            except KeepwarmError as error:
                self.tally.untyped += 1
                say(f"after the campaign {name} does not answer: {type(error).__name__}: {error}")

    def _count_ghosts(self) -> None:
        status = ask_running("status", runtime=self.runtime)
        if status is None:
            self.tally.untyped += 1
            say("after the campaign no keeper runs")
            return
        leases = [lease for row in status["engines"] for lease in row["leases"]]
        self.tally.ghost_leases += len(leases)
        booked = sum(sum(row["bytes"].values()) for row in status["engines"])
        reserved = sum(device["reserved_bytes"] for device in status["devices"])
        stuck = [row["id"] for row in status["engines"] if row["state"] in ("loading", "evicting")]
        faults = status["keeper"].get("faults", [])
        if leases or booked != reserved or stuck:
            say(f"left in the books: leases {leases}, {booked} != {reserved} bytes, stuck {stuck}")
            self.tally.ghost_leases += int(booked != reserved) + len(stuck)
        if faults:
            say(f"faults that the keeper counted: {faults}")

    def _count_leftovers(self) -> None:
        until = time.monotonic() + 5.0
        while leftovers(self.runtime) and time.monotonic() < until:
            time.sleep(0.05)
        orphans = [*leftovers(self.runtime)] + ([pid] if (pid := self.keeper_pid()) else [])
        self.tally.orphans += len(orphans)
        left = [
            path
            for folder in (self.runtime, self.root / "state")
            for pattern in ("**/e-*", "**/order-*", "**/*.new", "**/yield-*")
            for path in folder.glob(pattern)
            if not _is_swept_later(path)
        ]
        self.tally.leaks += len(left)
        if orphans or left:
            say(f"left behind: processes {orphans}, files {[str(path) for path in left]}")

    def close(self) -> None:
        """End whatever is left."""
        for caller in self._callers:
            caller.process.kill()
            caller.process.wait()
        for pid in (*leftovers(self.runtime), self.keeper_pid()):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._errors.close()


def _is_swept_later(path: Path) -> bool:
    """Whether a later keeper deletes what a killed one had begun to write."""
    later = time.time() + 3600.0
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        return any(entry.name == path.name and is_leftover(entry, later) for entry in entries)
    return False


def campaign(
    seed: int, faults: int, tally: Tally, *, keep: bool = False, quick: bool = False
) -> None:
    """One seed's faults, added to a tally.

    Args:
        seed: of every random choice.
        faults: how many.
        tally: what is added to.
        keep: leave the folder, with all logs, where it is.
        quick: leave out the kinds that take long.
    """
    root = Path(tempfile.mkdtemp(prefix="kw-f"))
    one = Tally()
    it = Campaign(root, seed, one, [kind for kind in KINDS if not quick or kind not in LONG])
    began = time.monotonic()
    try:
        it.prepare()
        it.run(faults)
        it.settle()
    finally:
        it.close()
        if keep or not one.is_clean:
            say(f"the logs of seed {seed} are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    one.seconds = time.monotonic() - began
    say(f"seed {seed}: {one.as_json()}")
    for name, value in one.__dict__.items():
        before = getattr(tally, name)
        longest = name == "longest_call_s"
        setattr(tally, name, max(before, value) if longest else before + value)


def main(arguments: Sequence[str]) -> int:
    """Run the campaigns of all seeds; the exit code says whether they were clean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=300, help="faults of each seed")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="leave out the kinds that take long")
    parser.add_argument("--keep", action="store_true", help="keep the folders with all logs")
    given = parser.parse_args(arguments)
    end_on_signals()
    tally = Tally()
    for seed in given.seed or [1]:
        campaign(seed, given.faults, tally, keep=given.keep, quick=given.quick)
    print(tally.as_json(), flush=True)
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
