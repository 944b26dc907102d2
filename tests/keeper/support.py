"""A private world for a background keeper: folders, a configuration, clients in processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.llama.sweep import leftovers
from shim.keeper.launch import running_line
from tests.processes import alive, wait_until

PRELUDE = """
import json, os, sys, time
from shim import Shim
import shim
s = Shim(os.environ["KEEPWARM_CONFIG"])
def say(**what): print(json.dumps(what), flush=True)
"""


@dataclass
class Client:
    """A process that runs Python lines with `s` (a Shim) and `say(**json)`."""

    process: subprocess.Popen[str]

    def hear(self) -> dict[str, Any]:
        """The next thing it said."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (
            f"the client ended: {self.process.stderr.read() if self.process.stderr else ''}"
        )
        return dict(json.loads(line))

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@dataclass
class World:
    """Folders and environment of one test's keeper."""

    root: Path
    clients: list[Client] = field(default_factory=list)

    @property
    def runtime(self) -> Path:
        """The keeper's folder."""
        return self.root / "run"

    @property
    def env(self) -> dict[str, str]:
        """The environment of everything in this world."""
        return {
            **os.environ,
            "KEEPWARM_CONFIG": str(self.root / "keepwarm.toml"),
            "KEEPWARM_RUNTIME_DIR": str(self.runtime),
            "KEEPWARM_LOCK_DIR": str(self.root / "locks"),
            "XDG_STATE_HOME": str(self.root / "state"),
        }

    def configure(
        self,
        models: Mapping[str, Mapping[str, Any]],
        *,
        budget: Mapping[str, Any] | None = None,
        keeper: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the configuration file."""
        sections: dict[str, Mapping[str, Any]] = {
            "budget": {"device": "host", **(budget or {})},
            "keeper": {**(keeper or {})},
        }
        for name, entry in models.items():
            sections[f"models.{name}"] = entry
        lines = []
        for title, values in sections.items():
            lines.append(f"[{title}]")
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items())
        (self.root / "keepwarm.toml").write_text("\n".join(lines) + "\n")

    def client(self, code: str) -> Client:
        """Start a client process."""
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
        )
        client = Client(process)
        self.clients.append(client)
        return client

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One op to the keeper that runs."""
        line = running_line(self.runtime)
        assert line is not None, "no keeper runs"
        try:
            return line.ask(op, **fields)
        finally:
            line.close()

    def status(self) -> dict[str, Any]:
        """The keeper's status."""
        return self.ask("status")

    def engine(self, model: str) -> dict[str, Any]:
        """The status row of a model's engine."""
        return next(row for row in self.status()["engines"] if model in row["models"])

    def keeper_pid(self) -> int:
        """The keeper's process id."""
        return int(self.status()["keeper"]["pid"])

    def engine_pids(self) -> list[int]:
        """The engine processes of this keeper that are alive."""
        return leftovers(self.runtime)

    def close(self) -> None:
        """End everything and remove the folders."""
        for client in self.clients:
            if client.process.poll() is None:
                client.kill()
            for stream in (client.process.stdout, client.process.stderr):
                if stream is not None:
                    stream.close()
        with contextlib.suppress(AssertionError, OSError):
            pid = self.keeper_pid()
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid), 20)
        for pid in self.engine_pids():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A world that ends with the test."""
    place = World(Path(tempfile.mkdtemp(prefix="kw-")))
    place.runtime.mkdir(mode=0o700)
    try:
        yield place
    finally:
        place.close()
