"""Seconds of a load, by llama-server: process start to ready, staged and disk-cold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.llama.binaries import find_binary, library_env
from backends.machine.children import START_LIMIT_S, ask_child, serving
from backends.machine.devices import free_bytes, llama_device_names
from backends.machine.environment import child_environment
from backends.machine.files.folders import temporary_folder
from backends.machine.files.page_cache import drop_from_page_cache
from backends.machine.gpus import gpu_environment
from backends.machine.unix_http import is_healthy
from budget.errors import MeasurementFailed
from budget.footprint import HOST

HELP_LIMIT_S: Final = 20.0
WANTED_MODES: Final = ("none", "mmap", "dio")
"""Load modes that are measured where the build offers them."""


def load_modes() -> tuple[str, ...]:
    """The load modes of `WANTED_MODES` that this llama-server offers, by its own help.

    Raises:
        ConfigError: llama-server is not installed.
        MeasurementFailed: it does not print its help.
    """
    binary = find_binary("llama-server")
    done = ask_child([str(binary), "--help"], child_environment(library_env(binary)), HELP_LIMIT_S)
    if done.cut:
        raise MeasurementFailed(f"llama-server --help did not end within {HELP_LIMIT_S:g} s.")
    return parse_load_modes(done.out)


def parse_load_modes(help_text: str) -> tuple[str, ...]:
    """The wanted modes in the text of llama-server's help; `mmap` and `none` in one without any."""
    _, found, rest = help_text.partition("--load-mode")
    named = set(re.findall(r"^\s+- ([a-z+]+):", rest[:1500], re.MULTILINE)) if found else set()
    modes = tuple(mode for mode in WANTED_MODES if mode in named)
    return modes or ("none", "mmap")


@dataclass
class LoadTimer:
    """Starts llama-server on a private socket, waits until it is ready, and ends it."""

    folder: Path
    device: str = HOST
    rpc: tuple[str, ...] = ()
    timeout_s: float = START_LIMIT_S
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def ready_s(self, path: Path, mode: str, *, cold: bool = False) -> float:
        """Seconds from process start to the first healthy answer.

        Raises:
            MeasurementFailed: llama-server ended, or was not ready in time.
        """
        if cold:
            drop_from_page_cache(path)
        with self._server(path, mode) as seconds:
            return seconds

    def context_bytes(self, path: Path, buffers: int) -> int:
        """Bytes of an engine on the device beyond its buffers, measured by the fall of the free bytes.

        Only a GPU has such a context; 0 on other devices.
        """
        if not self.device.startswith("cuda:"):
            return 0
        before = free_bytes(self.device)
        with self._server(path, "none"):
            after = free_bytes(self.device)
        if before is None or after is None:
            raise MeasurementFailed(
                f"the driver does not say how many bytes {self.device} has free."
            )
        return max(0, before - after - buffers)

    @contextmanager
    def _server(self, path: Path, mode: str) -> Iterator[float]:
        binary = find_binary("llama-server")
        layers = "0" if self.device == HOST else "999"
        # A socket's path is short, which that of a nested folder may not be.
        with temporary_folder("kw-") as folder:
            sock = folder / "s.sock"
            command = [str(binary), "-m", str(path), "--host", str(sock), "-lm", mode, "-c", "256"]
            command += ["--fit", "off", "--no-warmup", "--no-ui", "--offline", "-ngl", layers]
            command += ["-dev", ",".join(llama_device_names([self.device]))]
            command += ["-t", str(self.threads), "--cache-ram", "0", "-np", "1"]
            command += ["--rpc", ",".join(self.rpc)] if self.rpc else []
            env = child_environment({**library_env(binary), **gpu_environment([self.device])})
            log = self.folder / "load.log"
            with serving(command, env, log, lambda: is_healthy(sock), self.timeout_s) as server:
                yield server.ready_s
