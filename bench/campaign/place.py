"""Where a campaign happens: a private folder, its models and configuration, its keeper and callers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil

from backends.engine_process.orphans import leftovers
from campaign.models import GGUF, HERE, STALL_S, configuration
from harness.demo.models import make_models
from shim import KeepwarmError, Shim
from shim.config import load_config
from shim.keeper.catalog.catalog import build_catalog

REPOSITORY = HERE.parents[1]
BOUND_S = 60.0
"""No call and no command lasts longer; a plan of three calls may take three times as long."""
DISKS = ("kv", "runs", "state")
DISK_BYTES = 24 << 20
LASTS_S = 5 * STALL_S
"""In that time an engine that hangs is found where a request waits for it."""
MODELS_DISK_BYTES = 64 << 20
CONTEXTS = {"a": (1024, 1280), "b": (768, 1024), "c": (512,)}
PRIVATE = "FAULTS_NAMESPACE"


def enter_namespace() -> None:
    """Run this program again with mounts of its own, where that is permitted.

    Then disks can be full without harm, and `/dev/shm` is the campaign's alone.
    """
    command = ["unshare", "--mount", "--propagation", "private"]
    if PRIVATE in os.environ or os.getuid() or not shutil.which("unshare"):
        return
    if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        os.execvpe("unshare", [*command, sys.executable, *sys.argv], {**os.environ, PRIVATE: "1"})


class Place:
    """One campaign's folder and what lives in it.

    Args:
        root: an empty folder with a short path.
        seed: of every random choice.
        hung: told of a command that does not end.
    """

    def __init__(self, root: Path, seed: int, hung: Callable[[str], None]) -> None:
        self.root, self.chance = root, random.Random(seed)
        self.runtime, self.config = root / "r", root / "keepwarm.toml"
        self.models = {name: root / "models" / f"{name}.gguf" for name in GGUF}
        self.callers: list[subprocess.Popen[str]] = []
        self.stopped: set[int] = set()
        """Engines that a fault has stopped for good, or that hang."""
        self.is_private = PRIVATE in os.environ
        self.models_have_a_disk = False
        """Whether the models lie on a disk of their own, which can be slow without harm to others."""
        self._asking: list[threading.Thread] = []
        self.env = {
            **os.environ,
            "KEEPWARM_CONFIG": str(self.config),
            "KEEPWARM_RUNTIME_DIR": str(self.runtime),
            "KEEPWARM_LOCK_DIR": str(root / "locks"),
            "XDG_STATE_HOME": str(root / "state"),
            "TMPDIR": str(root / "tmp"),
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "clock", HERE.parent, REPOSITORY))),
            "FAULTS_CLOCK_FILE": str(root / "clock"),
            "FAULTS_FOLDER": str(root),
        }
        self._hung, self._limit = hung, 1 << 40

    def prepare(self) -> None:
        """Copies of the models, disks of their own, and a budget for half of the models."""
        self.runtime.mkdir(mode=0o700)
        for name in ("tmp", "models", *DISKS):
            (self.root / name).mkdir(mode=0o700)
        if self.is_private:
            self._mount()
        made = make_models(REPOSITORY / "models" / "tiny", tiny=True)
        for name, file in GGUF.items():
            shutil.copyfile(made[file], self.models[name])
        os.environ.update(self.env)
        self.configure()
        catalog = build_catalog(load_config(self.config))
        sizes = [engine.placements[0].total_bytes for engine in catalog.engines.values()]
        self._limit = max(sum(sizes) // 2, max(sizes) * 3 // 2)
        self.configure()

    def _mount(self) -> None:
        for name in DISKS:
            options = f"size={DISK_BYTES},mode=0700"
            mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.root / name)]
            subprocess.run(mount, check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/shm"], check=True)
        image = self.root / "models.img"
        with image.open("wb") as file:
            file.truncate(MODELS_DISK_BYTES)
        at = str(self.root / "models")
        steps = (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), at])
        with contextlib.suppress(OSError):
            self.models_have_a_disk = all(
                subprocess.run(step, capture_output=True).returncode == 0 for step in steps
            )

    def configure(self) -> None:
        """Write the configuration; each time some model's context differs."""
        contexts = {name: self.chance.choice(choice) for name, choice in CONTEXTS.items()}
        new = self.config.with_suffix(".new")
        new.write_text(configuration(self.root, self.models, self._limit, contexts))
        new.replace(self.config)

    def say_phase(self, phase: str) -> None:
        """Tell the callers what happens now: `NUMBER faults`, `NUMBER calm`, `NUMBER check` or `stop`."""
        new = self.root / "phase.new"
        new.write_text(phase)
        new.replace(self.root / "phase")

    # Processes

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

    def engines(self) -> list[int]:
        """All processes that the keeper's engines are made of."""
        return leftovers(self.runtime)

    def an_engine(self) -> int | None:
        """One of them."""
        pids = self.engines()
        return self.chance.choice(pids) if pids else None

    def a_caller(self, *, without: str = "") -> subprocess.Popen[str] | None:
        """A calling program that runs, of another mode than that one."""
        alive = [one for one in self.callers if one.poll() is None]
        if without:
            alive = [one for one in alive if without not in cast("list[str]", one.args)]
        return self.chance.choice(alive) if alive else None

    def keepwarm(self, *args: str) -> None:
        """A command of an operator; what it answers is no matter here, that it ends is."""
        command = [sys.executable, "-m", "shim.cli", *args]
        try:
            subprocess.run(command, env=self.env, capture_output=True, timeout=BOUND_S)
        except subprocess.TimeoutExpired:
            self._hung(f"keepwarm {' '.join(args)}")

    def end_keeper(self) -> None:
        """The keeper is asked to end, as by an operator."""
        pid = self.keeper_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def unload(self, name: str) -> None:
        """An operator unloads a model, where the keeper lets it."""
        with contextlib.suppress(KeepwarmError), Shim(self.config) as shim:
            shim.unload(name)

    def ask_soon(self, name: str) -> None:
        """Have one more request of a model, which is not counted, so that it is loaded now."""
        self._asking.append(threading.Thread(target=self._ask, args=(name,), daemon=True))
        self._asking[-1].start()

    def _ask(self, name: str) -> None:
        with contextlib.suppress(KeepwarmError), Shim(self.config) as shim:
            answer_of(shim, name)

    def let_faults_end(self) -> None:
        """Wait for what lasts, in which time requests find stopped engines; kill those that none used."""
        until = time.monotonic() + LASTS_S
        while self.stopped and time.monotonic() < until:
            self.stopped = {pid for pid in self.stopped if psutil.pid_exists(pid)}
            time.sleep(0.1)
        for pid in self.stopped & set(self.engines()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stopped.clear()
        for thread in self._asking:
            thread.join(BOUND_S)
            if thread.is_alive():
                self._hung("a request of the campaign itself")
        self._asking.clear()

    def close(self) -> None:
        """End whatever is left, and let go of the disks."""
        for caller in self.callers:
            caller.kill()
            caller.wait()
        for pid in (*self.engines(), self.keeper_pid()):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.is_private:
            for at in (*(self.root / name for name in ("models", *DISKS)), "/dev/shm"):
                subprocess.run(["umount", "-l", str(at)], capture_output=True)


def answer_of(shim: Shim, name: str) -> None:
    """One request of a model, as simple as it can be.

    Raises:
        KeepwarmError: as the call.
    """
    if name == "w":
        shim.call(name, numbers=[1, 2])
    elif name == "c":
        shim.embed(name, "x")
    else:
        shim.chat(name, "x", max_tokens=1)
