"""The journal of a run: a line for each finished step or item, so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

from harness.graphs.step import Step
from harness.record_files import content_of, digest_of, nothing_kept, owned
from shim import InvalidRequest, OutsideError
from traces.place import write_all

VERSION: Final = 1


class Journal:
    """Results that outlive the run. Values that are not JSON are left out, and their steps run again.

    The first line says which graph and inputs it belongs to. A last line that was cut by a kill or a full
    disk does not count. As a context it is one run's alone.
    """

    def __init__(self, file: Path, inputs: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self.file, self.inputs = file, dict(inputs)
        self.known = dict(known)
        """The results that were there when the run began."""
        self._lock = ExitStack()
        self._writing = threading.Lock()
        self._size: int | None = None
        self._cut = 0
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
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"The inputs cannot be kept in {file}: {error}.",
                hint="Give JSON values, or run without a record.",
            ) from error
        try:
            with file.open("xb", buffering=0) as out:
                try:
                    _append(out, line)
                except OSError:
                    file.unlink()  # without a first line, neither a run nor a resumed one could use it
                    raise
        except FileExistsError as error:
            raise InvalidRequest(
                f"{file} is there already.",
                hint="`Graph.resume` goes on from it; name another file for a new run.",
                file=str(file),
            ) from error
        except OSError as error:
            raise nothing_kept(file, error) from error
        return cls(file, inputs, {})

    @classmethod
    def load(cls, file: Path, steps: Sequence[Step]) -> Self:
        """A journal to go on from.

        Raises:
            InvalidRequest: the file is not there, no journal, of another graph, or of a newer version.
            OutsideError: the file cannot be read.
        """
        lines = _lines_of(file)
        head = _head_of(lines[0], file)
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
        journal = cls(file, head["inputs"], known)
        journal._size, journal._cut = sum(map(len, lines)) + len(lines) - 1, len(lines[-1])
        return journal

    def __enter__(self) -> Self:
        """Make it this run's alone, until the end.

        Raises:
            InvalidRequest: another run works with it, or has written to it since it was read.
            OutsideError: no other run can be kept from it, or the file cannot be opened.
        """
        with ExitStack() as lock:
            lock.enter_context(owned(self.file))
            self._drop_cut_line()
            self._lock = lock.pop_all()
        return self

    def _drop_cut_line(self) -> None:
        try:
            with self.file.open("ab") as out:
                size = os.fstat(out.fileno()).st_size
                if self._size in (None, size):
                    os.ftruncate(out.fileno(), size - self._cut)
                    return
        except OSError as error:
            raise self._unwritable(error) from error
        raise InvalidRequest(
            f"{self.file} was written by another run since this one read it.",
            hint="`Graph.resume` goes on from what is there.",
            file=str(self.file),
        )

    def __exit__(self, *_failure: object) -> None:
        self._lock.close()

    def keep(self, key: str, value: Any) -> None:
        """Write a result; returns when it outlives a crash of the machine.

        Raises:
            OutsideError: it cannot be written.
        """
        try:
            line = _sealed({"key": key, "value": value})
        except (TypeError, ValueError, RecursionError):
            self.left_out.append(key)
            return
        try:
            with self.file.open("ab", buffering=0) as out:
                with self._writing:
                    _append(out, line)
                os.fsync(out.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutsideError:
        return OutsideError(
            f"What was finished cannot be kept in {self.file}: {error.strerror or error}.",
            hint="See its folder's space and permissions. `Graph.resume` goes on with what is there.",
            file=str(self.file),
        )


def _append(out: FileIO, line: str) -> None:
    """Write a line whole or not at all: results that come after half of one could not be read."""
    end = os.fstat(out.fileno()).st_size
    try:
        write_all(out.fileno(), f"{line}\n".encode("utf-8", "surrogatepass"))
    except OSError:
        os.ftruncate(out.fileno(), end)
        raise


def _lines_of(file: Path) -> list[bytes]:
    """The lines of a journal; the last one is empty, or was cut."""
    lines = content_of(file, "Graph.run(record=...)").split(b"\n")
    if len(lines) == 1:
        raise InvalidRequest(
            f"{file} has nothing of a run: its first line is not whole.",
            hint="A kill or a full disk cut it. Remove the file, and run the graph anew.",
            file=str(file),
        )
    return lines


def _head_of(line: bytes, file: Path) -> dict[str, Any]:
    head = _parsed(line)
    if not isinstance(head, dict) or head.get("version") != VERSION:
        raise InvalidRequest(
            f"{file} is no journal that this keepwarm reads.",
            hint="A newer keepwarm wrote it, or it is another kind of file.",
            file=str(file),
        )
    _check_seal(head, file, 1)
    return head


def _sealed(data: Mapping[str, Any]) -> str:
    """A line of the journal, with a digest by which an edit is seen.

    Raises:
        TypeError, ValueError, RecursionError: the data would not come back from JSON as it is.
    """
    if json.loads(json.dumps(data, allow_nan=False)) != data:
        raise ValueError("a tuple or a number as a key would come back as something else")
    return json.dumps({**data, "digest": digest_of(data)}, ensure_ascii=False)


def _check_seal(entry: Any, file: Path, number: int) -> None:
    if isinstance(entry, dict):
        rest = {key: value for key, value in entry.items() if key != "digest"}
        if entry.get("digest") == digest_of(rest):
            return
    raise InvalidRequest(
        f"Line {number} of {file} is not as it was written: its digest does not match.",
        hint="The file was edited. Begin anew, or remove that line if it is not the first.",
        file=str(file),
        line=number,
    )


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _fingerprint(steps: Sequence[Step]) -> str:
    shape = [[step.name, sorted(step.needs), step.over, list(step.models)] for step in steps]
    return digest_of(shape)
