"""`keepwarm rerank`, `transcribe`, `speak` and `tokenize` against a real keeper with real engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import CommandPlace, new_place
from tests.shim.test_verbs_beside_chat import DOCUMENTS, MODULE, QUERY
from tools.reranker import write_reranker

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandPlace]:
    """A place with a reranker, a voice and an ear."""
    with new_place(tmp_path_factory.mktemp("cache")) as own:
        (own.root / "verbs_module.py").write_text(MODULE)
        code = {
            name: {"factory": f"verbs_module:{kind}", "can": [verb], "bytes": "64MiB"}
            for name, kind, verb in (
                ("voice", "Speaker", "speak"),
                ("ear", "Ear", "transcribe"),
            )
        }
        file = str(write_reranker(own.root / "rank.gguf"))
        own.configure({"rank": {"path": file, "role": "reranker", "context": 512}, **code})
        yield own


def test_documents_are_ordered(place: CommandPlace) -> None:
    """From arguments, or one a line from stdin; as a table and as JSON."""
    whole = place.json("rerank", "rank", QUERY, *DOCUMENTS)
    assert len(whole["ranked"]) == 3
    table = place.run("rerank", "rank", QUERY, "--top", "1", stdin="\n".join([*DOCUMENTS, ""]))
    assert table.exit_code == 0, table.stderr
    *_, row = table.stdout.splitlines()
    first = whole["ranked"][0]
    assert row.split()[:2] == [str(first["index"]), f"{first['score']:.4f}"]
    assert place.run("rerank", "rank", QUERY, stdin="\n").exit_code == 2


def test_a_text_becomes_sound_and_text_again(place: CommandPlace, tmp_path: Path) -> None:
    """The file is written as it came; a transcription is its text, its segments, or JSON."""
    wav = tmp_path / "a.wav"
    done = place.run("speak", "voice", "Hello", "there.", "--out", str(wav))
    assert done.exit_code == 0, done.stderr
    assert f"{wav}: {wav.stat().st_size} bytes, 8000 samples a second" in done.stdout
    assert place.run("transcribe", "ear", str(wav)).stdout == f"{wav.stat().st_size} bytes\n"
    segments = place.run("transcribe", "ear", str(wav), "--segments").stdout
    assert segments.splitlines()[-1].split() == ["0.00", "1.00", "all"]
    told = place.json("transcribe", "ear", str(wav), "--language", "de")
    assert told["language"] == "de"
    assert told["segments"] == [{"start_s": 0.0, "end_s": 1.0, "text": "all"}]
    failed = place.run("speak", "voice", "x", "--out", str(tmp_path / "absent" / "a.wav"))
    assert failed.exit_code == 4
    assert place.run("transcribe", "ear", str(tmp_path / "absent.wav")).exit_code == 2


def test_tokens_are_printed_or_counted(place: CommandPlace) -> None:
    """A model that cannot do something else says so with exit code 2."""
    ids = place.run("tokenize", "rank", "Hello world.").stdout.split()
    assert place.run("tokenize", "rank", "--count", stdin="Hello world.").stdout == f"{len(ids)}\n"
    told = place.json("tokenize", "rank", "Hello world.")
    assert (told["count"], told["tokens"]) == (len(ids), [int(one) for one in ids])
    refused = place.run("speak", "rank", "x", "--out", "x.wav", "--json")
    assert refused.exit_code == 2
    error = json.loads(refused.stdout or refused.stderr)["error"]
    assert "that do: voice" in error["hint"]
