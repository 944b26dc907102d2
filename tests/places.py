"""A private place for keepers that run in processes: folders, a configuration, an environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from backends.engine_process.orphans import leftovers


@dataclass
class Place:
    """Folders and environment of everything that one test starts."""

    root: Path

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
        """The environment of every process here."""
        return {
            **{k: v for k, v in os.environ.items() if k not in ("HARNESS_ENDPOINTS", "COLUMNS")},
            "KEEPWARM_CONFIG": str(self.config),
            "KEEPWARM_RUNTIME_DIR": str(self.runtime),
            "KEEPWARM_LOCK_DIR": str(self.root / "locks"),
            "XDG_STATE_HOME": str(self.root / "state"),
        }

    def configure(self, models: Mapping[str, Mapping[str, Any]], **sections: Any) -> None:
        """Write the configuration file: a budget on the host, unless a section says otherwise."""
        budget = sections.get("budget", {})
        default = {} if "devices" in budget else {"device": "host"}
        tables = {**sections, "budget": {**default, **budget}}
        tables.update({f"models.{name}": entry for name, entry in models.items()})
        lines = []
        for title, values in tables.items():
            lines.append(f"[{title}]")
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in values.items())
        self.config.write_text("\n".join(lines) + "\n")

    def engine_pids(self) -> list[int]:
        """The engine processes of this place's keeper that are alive."""
        return leftovers(self.runtime)

    def close(self) -> None:
        """End the engines that are left, and remove the folders."""
        for pid in self.engine_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


_Place = TypeVar("_Place", bound=Place)


@contextlib.contextmanager
def opened(make: Callable[[Path], _Place]) -> Iterator[_Place]:
    """A place that ends with the test; the paths of its sockets are short."""
    place = make(Path(tempfile.mkdtemp(prefix="kw-")))
    place.runtime.mkdir(mode=0o700)
    try:
        yield place
    finally:
        place.close()
