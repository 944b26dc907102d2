"""A private place for a background keeper and its clients, which are processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from shim.cli.console.running import ask_running
from tests.places import Place, opened
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

    def go_on(self) -> None:
        """Let it pass the line in which it reads its input, also if it was stopped."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@dataclass
class World(Place):
    """The place of one test's keeper and of its clients."""

    clients: list[Client] = field(default_factory=list)

    def client(self, code: str) -> Client:
        """Start a client process."""
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
        )
        client = Client(process)
        self.clients.append(client)
        return client

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process here, the hurried keepers among them."""
        return {**super().env, "PYTHONPATH": str(self.root)}

    def hurry(self, **pauses: Any) -> None:
        """Keepers that start from now on have other pauses: `module__NAME=seconds`, below `shim.keeper`."""
        lines = ["import sys", 'if "shim.keeper" in sys.orig_argv:']
        for name, seconds in pauses.items():
            module, _, constant = name.rpartition("__")
            home = f"shim.keeper.{module.replace('__', '.')}"
            lines.append(f"    import {home}; {home}.{constant} = {seconds}")
        (self.root / "sitecustomize.py").write_text("\n".join(lines) + "\n")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One op to the keeper that runs."""
        answer = ask_running(op, runtime=self.runtime, **fields)
        assert answer is not None, "no keeper runs"
        return answer

    def status(self) -> dict[str, Any]:
        """The keeper's status."""
        return self.ask("status")

    def engine(self, model: str) -> dict[str, Any]:
        """The status row of a model's engine."""
        return next(row for row in self.status()["engines"] if model in row["models"])

    def keeper_pid(self) -> int:
        """The keeper's process id."""
        return int(self.status()["keeper"]["pid"])

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
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not alive(pid))
        super().close()


def world() -> AbstractContextManager[World]:
    """A world that ends with the test."""
    return opened(World)
