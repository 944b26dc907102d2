"""The journal of a run: a line for each finished step or item, so that a killed run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from harness.graphs.step import Step
from shim import InvalidRequest, OutsideError

VERSION: Final = 1


class Journal:
    """Results that outlive the run. Values that are not JSON are left out, and their steps run again.

    The first line says which graph and inputs it belongs to. A last line that was cut by a kill or a full
    disk does not count.
    """

    def __init__(self, file: Path, inputs: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self.file, self.inputs = file, dict(inputs)
        self._known = dict(known)
        self.left_out: list[str] = []

    @classmethod
    def begin(cls, file: Path, steps: Sequence[Step], inputs: Mapping[str, Any]) -> Self:
        """A new journal.

        Raises:
            InvalidRequest: the file is there already, or an input would not come back from JSON as it is.
            OutsideError: the file cannot be written.
        """
        head = {"version": VERSION, "graph": _fingerprint(steps), "inputs": dict(inputs)}
        try:
            line = _sealed(head)
            if json.loads(line)["inputs"] != head["inputs"]:
                raise ValueError("a tuple or a number as a key would come back as something else")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"The inputs cannot be kept in {file}: {error}.",
                hint="Give JSON values, or run without a record.",
            ) from error
        try:
            with file.open("x", encoding="utf-8", errors="surrogatepass") as out:
                out.write(line + "\n")
        except FileExistsError as error:
            raise InvalidRequest(
                f"{file} is there already.",
                hint="`Graph.resume` goes on from it; name another file for a new run.",
                file=str(file),
            ) from error
        except (OSError, ValueError) as error:
            raise OutsideError(
                f"The record {file} cannot be written: {error}.",
                hint="See its folder's space and permissions, or name another file. Nothing was run.",
                file=str(file),
            ) from error
        return cls(file, inputs, {})

    @classmethod
    def load(cls, file: Path, steps: Sequence[Step]) -> Self:
        """A journal to go on from.

        Raises:
            InvalidRequest: the file is not there, no journal, of another graph, or of a newer version.
            OSError: the file cannot be read.
        """
        try:
            lines = file.read_bytes().split(b"\n")
        except FileNotFoundError as error:
            raise InvalidRequest(
                f"{file} is not there: no run has been recorded in it.",
                hint="`Graph.run(record=...)` begins one.",
                file=str(file),
            ) from error
        head = _parsed(lines[0])
        if not isinstance(head, dict) or head.get("version") != VERSION:
            raise InvalidRequest(
                f"{file} is no journal that this keepwarm reads.",
                hint="A newer keepwarm wrote it, or it is another kind of file.",
                file=str(file),
            )
        _check_seal(head, file, 1)
        if head.get("graph") != _fingerprint(steps):
            raise InvalidRequest(
                f"{file} is the journal of another graph: its steps or their needs differ.",
                hint="Run the graph as it was, or begin anew with another file.",
                file=str(file),
            )
        known = dict[str, Any]()
        whole = lines[1:-1]  # what follows the last line end was cut
        for number, line in enumerate(whole, 2):
            entry = _parsed(line)
            _check_seal(entry, file, number)
            if "key" not in entry:
                raise InvalidRequest(
                    f"Line {number} of {file} is no result: the journal was put together from several.",
                    hint="Begin anew with another file.",
                    file=str(file),
                )
            known[entry["key"]] = entry["value"]
        _drop_cut_line(file, len(lines[-1]))
        return cls(file, head["inputs"], known)

    def has(self, key: str) -> bool:
        """Whether a result is there."""
        return key in self._known

    def value(self, key: str) -> Any:
        """A result that is there."""
        return self._known[key]

    def keep(self, key: str, value: Any) -> None:
        """Write a result; returns when it outlives a crash of the machine.

        Raises:
            OSError: it cannot be written.
        """
        try:
            line = _sealed({"key": key, "value": value})
        except (TypeError, ValueError, RecursionError):
            self.left_out.append(key)
            return
        if json.loads(line)["value"] != value:
            # A tuple or a number as a key would come back as something else.
            self.left_out.append(key)
            return
        with self.file.open("a", encoding="utf-8", errors="surrogatepass") as out:
            out.write(line + "\n")
            out.flush()
            os.fsync(out.fileno())


def _sealed(data: Mapping[str, Any]) -> str:
    """A line of the journal, with a digest by which an edit is seen."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return json.dumps({**data, "digest": _digest(json.loads(text))}, ensure_ascii=False)


def _check_seal(entry: Any, file: Path, number: int) -> None:
    if isinstance(entry, dict):
        rest = {key: value for key, value in entry.items() if key != "digest"}
        if entry.get("digest") == _digest(rest):
            return
    raise InvalidRequest(
        f"Line {number} of {file} is not as it was written: its digest does not match.",
        hint="The file was edited. Begin anew, or remove that line if it is not the first.",
        file=str(file),
        line=number,
    )


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _drop_cut_line(file: Path, size: int) -> None:
    if size:
        os.truncate(file, file.stat().st_size - size)


def _fingerprint(steps: Sequence[Step]) -> str:
    shape = [[step.name, sorted(step.needs), step.over, list(step.models)] for step in steps]
    return _digest(shape)
