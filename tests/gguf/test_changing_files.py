"""Model files that change while their headers are read: typed errors, and never the process's end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.gguf import read_header
from backends.gguf.source import WINDOW_BYTES, HeaderBytes
from budget.errors import BadModelFile
from tests.gguf import raw

WORDS = tuple(b"token%d" % i for i in range(60_000))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with a vocabulary of several windows."""
    keys = [key for key in raw.llama_keys() if not key.name.startswith(b"tokenizer.ggml")]
    keys.append(raw.Key(b"tokenizer.ggml.merges", raw.ARRAY, WORDS, raw.STRING))
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.build(keys, raw.llama_tensors()).data)
    return path


def _meanwhile(
    monkeypatch: pytest.MonkeyPatch, after_reads: int, change: Callable[[], object]
) -> list[int]:
    """Something happens to the file after some of the reads; returns the offsets of all reads."""
    reads: list[int] = []

    def watched(path: Path, descriptor: int, n_bytes: int) -> HeaderBytes:
        def read_into(buffer: memoryview, offset: int) -> int:
            if len(reads) == after_reads:
                change()
            reads.append(offset)
            return os.preadv(descriptor, [buffer], offset)

        return HeaderBytes(path, n_bytes, read_into)

    monkeypatch.setattr(HeaderBytes, "of", watched)
    return reads


def _reads(model: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        reads = _meanwhile(patch, -1, lambda: None)
        read_header(model)
    assert len(reads) > 3
    return len(reads)


def test_a_file_that_is_cut_between_any_two_reads_is_refused(model: Path) -> None:
    """To nothing, and to half of what was read; the message says where it ends now."""
    whole = model.read_bytes()
    for after in range(_reads(model)):
        for cut in (0, after * WINDOW_BYTES // 2):
            model.write_bytes(whole)
            with pytest.MonkeyPatch.context() as patch:
                _meanwhile(patch, after, lambda size=cut: os.truncate(model, size))  # type: ignore[misc]
                with pytest.raises(BadModelFile, match="while its header was read") as caught:
                    read_header(model)
            assert caught.value.facts["check"] == "changed"


def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be of two files; the next request reads it again."""
    _meanwhile(monkeypatch, 1, lambda: os.utime(model, ns=(1, 1)))
    with pytest.raises(BadModelFile, match="written to while"):
        read_header(model)
    monkeypatch.undo()
    assert read_header(model).architecture == "llama"


def test_a_disk_that_fails_is_a_bad_model_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own word for it is in the message."""

    def fails() -> None:
        raise OSError(5, "Input/output error")

    _meanwhile(monkeypatch, 1, fails)
    with pytest.raises(BadModelFile, match="Input/output error"):
        read_header(model)


_CUT_IT_ALWAYS = """
import os, sys
path, whole = sys.argv[1], os.path.getsize(sys.argv[1])
sizes = (0, 1000, whole // 2, 1 << 18, whole)
print("cutting", flush=True)
while True:
    for size in sizes:
        os.truncate(path, size)
"""


@pytest.mark.full
def test_a_file_that_is_cut_all_the_time_never_ends_the_process(model: Path) -> None:
    """Thousands of reads against another process that truncates without pause."""
    cutter = subprocess.Popen(
        [sys.executable, "-c", _CUT_IT_ALWAYS, str(model)], stdout=subprocess.PIPE
    )
    try:
        assert cutter.stdout is not None
        cutter.stdout.readline()
        refused = 0
        for _ in range(5000):
            try:
                read_header(model)
            except BadModelFile:
                refused += 1
        assert refused > 0
        assert cutter.poll() is None
    finally:
        cutter.kill()
        cutter.wait()
        if cutter.stdout is not None:
            cutter.stdout.close()
