"""`keepwarm call` against a real keeper with a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import CommandPlace, new_place
from tests.workers.models import write_speech


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandPlace]:
    """A place with a transcriber, a stream and odd code."""
    with new_place(tmp_path_factory.mktemp("cache")) as own:
        write_speech(own.root)
        names = {"whisper": "Transcriber", "s": "Stream", "odd": "Odd"}
        models = {n: {"factory": f"speech:{kind}", "bytes": "64MiB"} for n, kind in names.items()}
        own.configure(models)
        yield own


def test_a_file_and_a_payload_reach_the_model(place: CommandPlace, tmp_path: Path) -> None:
    """The result is JSON; bytes and arrays can be saved."""
    wav, copy = tmp_path / "a.wav", tmp_path / "copy.wav"
    wav.write_bytes(b"RIFF\0")
    given = ["--json", '{"language": "en"}', "--file", f"audio={wav}"]
    done = place.run("call", "whisper", *given, "--save", f"audio={copy}")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["value"]["language"] == "en"
    assert said["value"]["audio"] == {"saved": str(copy), "bytes": 5}
    assert copy.read_bytes() == b"RIFF\0"
    plain = json.loads(place.run("call", "whisper", *given).stdout)
    assert plain["value"]["audio"] == {"bytes": 5}
    assert plain["residency"]["cold"] is False


def test_items_are_printed_as_they_come(place: CommandPlace, tmp_path: Path) -> None:
    """One line each; the payload may come from stdin, and an array is a list."""
    done = place.run("call", "s", "--stream", "--json", "-", stdin='{"n": 3}')
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"i": 0, "samples": []},
        {"i": 1, "samples": [0]},
        {"i": 2, "samples": [0, 1]},
    ]
    array = tmp_path / "samples.npy"
    place.run("call", "s", "--stream", "--json", '{"n": 3}', "--save", f"samples={array}")
    assert np.load(array).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["odd", "--json", '{"do": "fails"}'], 4, "odd raised ValueError: no such speaker"),
        (["odd", "--json", "[]"], 2, "--json is not an object"),
        (["odd", "--json", "{"], 2, "--json is no JSON"),
        (["odd", "--file", "x=/nonexistent"], 2, "No such file"),
        (
            ["whisper", "--save", "sound=x"],
            2,
            "The result has no field sound. It has: audio, name.",
        ),
        (["whisper", "--save", "name=x"], 2, "The field name is neither bytes nor an array"),
        (["nothing"], 2, "nothing"),
    ],
)
def test_mistakes_are_answered_with_their_exit_code(
    place: CommandPlace, args: list[str], code: int, words: str
) -> None:
    """The caller's, and those of the model's code."""
    done = place.run("call", *args)
    assert done.exit_code == code
    assert words in done.stderr.replace("\n ", "")
    assert "error" in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["list"], "speech:Transcriber"),
        (["show", "whisper"], "speech:Transcriber"),
        (["plan"], "whisper"),
        (["config", "check"], "whisper"),
        (["ps"], "whisper"),
        (["logs", "whisper"], "made tiny"),
        (["recommend"], "llama"),
    ],
)
def test_other_commands_know_python_models(
    place: CommandPlace, command: list[str], words: str
) -> None:
    """None takes its entry for a GGUF file's."""
    assert place.run("load", "whisper").exit_code == 0
    done = place.run(*command)
    assert done.exit_code == 0, done.output
    assert words in done.stdout
