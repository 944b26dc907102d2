"""A private place for real commands: folders, a configuration, `keepwarm` as a process."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from backends.llama.sweep import leftovers
from shim.cli import main

LIMIT_S = 120.0
KEEPWARM = [sys.executable, "-m", "shim.cli"]
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Place:
    """Folders and environment of real commands."""

    root: Path
    cache: Path

    @property
    def runtime(self) -> Path:
        """The keeper's folder."""
        return self.root / "r"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.root / "keepwarm.toml"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command here."""
        return {
            **{k: v for k, v in os.environ.items() if k not in ("HARNESS_ENDPOINTS", "COLUMNS")},
            "KEEPWARM_CONFIG": str(self.config),
            "KEEPWARM_RUNTIME_DIR": str(self.runtime),
            "KEEPWARM_LOCK_DIR": str(self.root / "l"),
            "XDG_STATE_HOME": str(self.root / "s"),
            "XDG_CACHE_HOME": str(self.cache),
            "PYTHONPATH": str(_ROOT),
        }

    def configure(self, models: Mapping[str, Mapping[str, Any]], **sections: Any) -> None:
        """Write the configuration file."""
        tables = {"budget": {"device": "host", "reserve": "0B"}, **sections}
        tables.update({f"models.{name}": entry for name, entry in models.items()})
        lines = []
        for title, values in tables.items():
            lines.append(f"[{title}]")
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items())
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command in a process of its own that goes on."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.root}
        return subprocess.Popen([*KEEPWARM, *args], env=self.env, **{**given, **options})

    def run(self, *args: str, stdin: str = "") -> Result:
        """A whole command, in this process: imported once for all tests. The keeper is its own."""
        return CliRunner().invoke(main, list(args), input=stdin, env=self.env)

    def process(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A whole command in a process of its own, as people run it."""
        return subprocess.run(
            [*KEEPWARM, *args],
            input=stdin,
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def json(self, *args: str, code: int = 0) -> Any:
        """What a command prints with `--json`; its exit code is checked."""
        done = self.run(*args, "--json")
        assert done.exit_code == code, done.stderr
        return json.loads(done.stdout)

    def engine(self, model: str) -> dict[str, Any]:
        """The row of a model's engine in `ps --json`."""
        return next(row for row in self.json("ps")["engines"] if model in row["models"])

    def close(self) -> None:
        """Stop the keeper, and remove the folders."""
        self.run("keeper", "stop")
        for pid in leftovers(self.runtime):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def new_place(cache: Path) -> Iterator[Place]:
    """A place that ends with the test; the paths of its sockets are short."""
    place = Place(Path(tempfile.mkdtemp(prefix="kw")), cache)
    place.runtime.mkdir(mode=0o700)
    try:
        yield place
    finally:
        place.close()
