"""`runs.jsonl`: one line for every run, also for one that raised."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from traces.checked import CheckedFields, a_file, a_list, an_object
from traces.place import check_regular, lock, opened_regular

FILE_NAME = "runs.jsonl"
LOCK_SECONDS: Final = 5.0
"""How long another process may keep the file locked, which it does for one line."""

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class RequestLine(CheckedFields):
    """One request of a run, as its line in `runs.jsonl` tells it.

    `arrival_s` counts from the run's start. `waited_s` is from asking to being granted, `ttft_s` from
    asking to the first token, `load_s` the length of the load waited for (0 when there was none).
    None means that it was not observed. `prompt` and `answer` are there only with `record_content`.
    """

    request_id: str
    model: str
    engine: str
    operation: str
    remote: bool
    cold: bool
    arrival_s: float
    waited_s: float
    load_s: float
    ttft_s: float | None
    total_s: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    tokens_per_s: float | None
    finish_reason: str | None
    error: str | None
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class RunLine(CheckedFields):
    """One run. `started` is ISO 8601 in UTC; `status` is `ok` or `error`; `trace` a path or None."""

    run_id: str
    service: str
    started: str
    seconds: float
    status: str
    error_type: str | None = None
    error_message: str | None = None
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    trace: str | None = None
    problems: tuple[str, ...] = ()
    requests: tuple[RequestLine, ...] = field(default=())


def append_run(path: Path, line: RunLine, requests: Sequence[str] = ()) -> None:
    """Append one line to `path` (0600) with one write, so that concurrent runs never mix.

    A line that a killed writer left unfinished is closed first.

    Args:
        path: of `runs.jsonl`.
        line: the run.
        requests: more of its requests, each a `RequestLine` as JSON.

    Raises:
        InvalidArgument: one of them is of another type.
        TimeoutError: another process keeps the file locked.
        OSError: the file cannot be opened, or took less than the line.
    """
    path = a_file("path", path)
    an_object("line", line, RunLine)
    a_list("requests", requests, str)
    text = json.dumps(_wire(line), ensure_ascii=True, allow_nan=False)
    if requests:
        start = text.removesuffix("]}")
        text = start + (", " if line.requests else "") + ", ".join(requests) + "]}"
    data = (text + "\n").encode()
    with _locked(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(f"{path} took {written} of {len(data)} bytes of a run's line")


def drop_runs(path: Path, traces: Collection[str]) -> int:
    """Take the lines of these traces out of `path`; returns how many. Damaged lines stay.

    Raises:
        TimeoutError: another process keeps the file locked.
        OSError: the file cannot be read or written anew. Then it is as it was.
    """
    if not path.exists():
        return 0
    with _locked(path), path.open("rb") as lines:
        part = path.with_name(path.name + ".part")
        # What a killed one left: only what holds the lock writes it.
        part.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
        dropped = 0
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb") as kept:
                for text in lines:
                    line = _parse(text.decode("utf-8", "replace"), "")
                    if isinstance(line, RunLine) and line.trace in traces:
                        dropped += 1
                    else:
                        kept.write(text)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return dropped


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of `path`, which nothing else writes until it is left."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _SAFELY, 0o600)
        try:
            check_regular(descriptor, path)
            # Where a file system has no locks a line is still one write.
            lock(descriptor, path, LOCK_SECONDS)
            # While this waited, the file may have been written anew under its name.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:  # noqa: PTH116
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _wire(line: RunLine) -> dict[str, Any]:
    data = asdict(line)
    for request in data["requests"]:
        for key in ("prompt", "answer"):
            if request[key] is None:
                del request[key]
    return data


def read_runs(path: Path) -> Iterator[RunLine | ValueError]:
    """Every line of `path` in order: a run, or for a damaged line a ValueError that names it.

    Raises:
        InvalidArgument: that is no path.
        OSError: the file cannot be read.
    """
    return _read(a_file("path", path))


def _read(path: Path) -> Iterator[RunLine | ValueError]:
    with opened_regular(path) as lines:
        for number, line in enumerate(lines, 1):
            text = line.decode("utf-8", "replace")
            if text.strip():
                yield _parse(text, f"{path}:{number}")


def _parse(text: str, where: str) -> RunLine | ValueError:
    try:
        data = json.loads(text)
        requests = tuple(RequestLine(**request) for request in data.pop("requests"))
        problems = tuple(data.pop("problems"))
        line = RunLine(**data, requests=requests, problems=problems)
        _check(line)
        return line
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return ValueError(f"{where} is not a run's line: {error}")


def _check(line: RunLine) -> None:
    """Refuse a line whose texts cannot be what they are; JSON could hold anything."""
    texts = (line.run_id, line.service, line.started, line.status)
    "".join((*texts, *filter(None, (line.error_type, line.error_message, line.trace)))).encode()
    if line.trace is not None and "\0" in line.trace:
        raise ValueError("its trace cannot be a path")
