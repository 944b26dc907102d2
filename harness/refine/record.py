"""The record of a refined answer: each round's text, scores and costs. A killed run goes on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from harness.evaluation.judgement import Evaluation, Judgement
from harness.given import a_file
from harness.record_files import behind_links, content_of, digest_of, owned, tidy
from shim import InvalidRequest, OutsideError, Reply
from shim.paths import open_regular, write_whole

VERSION: Final = 1

Stopped = Literal["passed", "no_progress", "repeated", "max_rounds", "failed"]


@dataclass(frozen=True, slots=True)
class Produced:
    """One text of the producer, and what it cost. `evicted` are models that left for it."""

    text: str
    seconds: float = 0.0
    cold: bool = False
    load_s: float = 0.0
    evicted: tuple[str, ...] = ()
    tokens: int = 0

    @classmethod
    def of(cls, reply: Reply) -> Produced:
        """What a reply says."""
        came = reply.residency
        return cls(
            reply.content, reply.total_s, came.cold, came.load_s, came.evicted,
            reply.usage.completion_tokens or 0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Round:
    """One text with its evaluation; None while it was not judged yet."""

    produced: Produced
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for. A record is gone on with only by a run of the same settings."""

    producer: str
    judges: tuple[str, ...]
    threshold: float
    max_rounds: int
    floor: float
    rubric: Mapping[str, Any]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefineRecord:
    """A task's whole run. `stopped` is None while it goes on; the last note says why it failed."""

    task: str
    settings: Settings
    rounds: tuple[Round, ...] = ()
    stopped: Stopped | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Round:
        """The round of the highest composite; of equal ones the first.

        Raises:
            InvalidRequest: no round was judged yet.
        """
        judged = [one for one in self.rounds if one.evaluation is not None]
        if not judged:
            raise InvalidRequest(
                "No round of this record was judged yet.",
                hint=f"The run failed: {self.notes[-1]}" if self.stopped == "failed" else "",
            )
        return max(judged, key=lambda one: one.evaluation.composite if one.evaluation else 0.0)

    @property
    def answer(self) -> str:
        """The text of the best round."""
        return self.best.produced.text

    @property
    def composite(self) -> float:
        """The composite of the best round, 0 to 10."""
        evaluation = self.best.evaluation
        assert evaluation is not None
        return evaluation.composite

    @property
    def passed(self) -> bool:
        """Whether the best round reached the threshold."""
        return self.stopped == "passed"

    def with_text(self, produced: Produced) -> RefineRecord:
        """The record with another text, which was not judged yet."""
        return replace(self, rounds=(*self.rounds, Round(produced)))

    def with_scores(self, evaluation: Evaluation) -> RefineRecord:
        """The record with the last text's evaluation."""
        last = replace(self.rounds[-1], evaluation=evaluation)
        return replace(self, rounds=(*self.rounds[:-1], last))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-serialisable data, with a digest of the rest."""
        data = {
            "version": VERSION,
            **asdict(self),
            "rounds": list(map(_round_to_json, self.rounds)),
        }
        return {**data, "digest": digest_of(data)}

    @classmethod
    def from_json(cls, data: Any, name: str = "This record") -> RefineRecord:
        """What `to_json` made.

        Raises:
            InvalidRequest: it is no record (or its text), is of a newer version, or was edited.
        """
        if isinstance(data, (str, bytes)):
            raise InvalidRequest(
                f"{name} is text, not what `json.loads` makes of it.",
                hint="Parse it first, or read its file with `RefineRecord.load`.",
            )
        _check_version(data, name)
        rest = {key: value for key, value in data.items() if key != "digest"}
        if data.get("digest") != digest_of(rest):
            raise InvalidRequest(
                f"{name} was edited: its digest does not match.",
                hint="Scores of edited texts would be wrong. Name another file, or remove this one.",
                found=data.get("digest"),
                expected=digest_of(rest),
            )
        try:
            return cls(
                task=data["task"],
                settings=_settings(data["settings"]),
                rounds=tuple(_round_from_json(one) for one in data["rounds"]),
                stopped=data["stopped"],
                notes=tuple(data["notes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _no_record(name, repr(error)) from error

    def save(self, file: Path | str) -> None:
        """Write it whole: a kill leaves the record before or this one, nothing in between.

        Raises:
            OutsideError: the file cannot be written.
        """
        path = a_file("The file of a record", file)
        try:
            write_whole(behind_links(path), self._as_bytes())
        except OSError as error:
            raise OutsideError(
                f"The record {path} cannot be written: {error.strerror or error}.",
                hint="See its folder's space and permissions. The next run goes on from the record before.",
                file=str(path),
            ) from error

    def _as_bytes(self) -> bytes:
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        try:
            return text.encode()
        except UnicodeEncodeError:  # half of a character has no bytes, but an escape
            return json.dumps(self.to_json(), indent=1).encode()

    @classmethod
    def load(cls, file: Path | str) -> RefineRecord:
        """What `save` wrote.

        Raises:
            InvalidRequest: the file is not there, holds no record, or one that was edited.
            OutsideError: the file cannot be read.
        """
        content = content_of(a_file("The file of a record", file), "Refine.run(record=...)")
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _no_record(str(file), str(error), file=str(file)) from error
        return cls.from_json(data, str(file))


class RecordFile:
    """The file of a run's record. As a context it is one run's alone.

    Whatever kept no other run from it, a run ends where another has written it since.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = ExitStack()
        self._seen = self._content()

    def __enter__(self) -> Self:
        """Make it this run's alone, until the end.

        Raises:
            InvalidRequest: another run works with it, or has written it since this was made.
            OutsideError: no other run can be kept from it.
        """
        with ExitStack() as lock:
            lock.enter_context(owned(self.file))
            self._check_unchanged()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._lock.close()

    def owned_for(self, record: RefineRecord) -> AbstractContextManager[object]:
        """A context in which it is one run's alone, where the record has not ended."""
        if record.stopped is None:
            return self
        tidy(self.file)
        return nullcontext()

    def save(self, record: RefineRecord) -> None:
        """As `RefineRecord.save`.

        Raises:
            InvalidRequest: another run has written the file since.
            OutsideError: the file cannot be written.
        """
        self._check_unchanged()
        record.save(self.file)
        self._seen = self._content()

    def _check_unchanged(self) -> None:
        if self._content() != self._seen:
            raise InvalidRequest(
                f"{self.file} was written by another run while this one worked.",
                hint="Let one run at a time use a record; the next one goes on from what is there.",
                file=str(self.file),
            )

    def _content(self) -> bytes:
        """A digest of it; empty where there is none, or none that can be read."""
        try:
            with open_regular(self.file) as content:
                return hashlib.sha256(content.read()).digest()
        except OSError:
            return b""


def _settings(data: Mapping[str, Any]) -> Settings:
    listed = {key: tuple(data[key]) for key in ("judges", "overrides")}
    return Settings(**{**data, **listed})


def _round_to_json(one: Round) -> dict[str, Any]:
    found = one.evaluation
    judged = {"judgements": None, "disagreement_over": None} if found is None else asdict(found)
    return {"produced": asdict(one.produced), **judged}


def _round_from_json(data: Mapping[str, Any]) -> Round:
    produced = Produced(**{**data["produced"], "evicted": tuple(data["produced"]["evicted"])})
    if data["judgements"] is None:
        return Round(produced)
    judgements = tuple(Judgement.from_json(one) for one in data["judgements"])
    return Round(produced, Evaluation(judgements, data["disagreement_over"]))


def _check_version(data: Any, name: str) -> None:
    version = data.get("version") if isinstance(data, dict) else None
    if version is None:
        raise _no_record(name, "it has no version")
    if version != VERSION:
        raise InvalidRequest(
            f"{name} is of version {version!r}; this keepwarm reads version {VERSION}.",
            hint="A newer keepwarm wrote it: update keepwarm, or name another file.",
            version=version if isinstance(version, int) else None,
        )


def _no_record(name: str, why: str, **facts: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is no record of a refined answer: {why}.",
        hint="Name another file, or remove this one to begin anew.",
        **facts,
    )
