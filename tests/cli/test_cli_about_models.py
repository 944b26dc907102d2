"""`list`, `show`, `stop` and `logs`: what is said of each kind of model, with a keeper and without."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.cli.console.chosen_model import file_of, with_file
from shim.config import Config
from tests.cli.support import LIMIT_S, CommandPlace
from tests.places import opened
from tests.processes import wait_until

SHORT = ("--max-tokens", "2", "--temperature", "0")


class BarePlace(CommandPlace):
    """A place without a configuration."""

    @property
    def env(self) -> dict[str, str]:
        """No file is named, and none is found."""
        return {**super().env, "KEEPWARM_CONFIG": "", "XDG_CONFIG_HOME": str(self.root)}


@pytest.fixture
def bare(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandPlace]:
    """The working folder, without a configuration and without a keeper."""
    with opened(lambda root: BarePlace(root, cache)) as own:
        monkeypatch.chdir(own.root)
        yield own


def test_list_says_what_each_model_is_without_a_keeper(place: CommandPlace) -> None:
    """A file, one that is missing, and an endpoint; nothing is started."""
    rows = {row["model"]: row for row in place.json("list")["models"]}
    assert list(rows) == ["writer", "judge", "vec", "lost", "far"]
    writer = rows["writer"]
    assert (writer["state"], writer["quantization"], writer["context"]) == ("absent", "Q4_0", 1024)
    assert writer["file_bytes"] == Path(writer["file"]).stat().st_size
    assert "cannot be opened" in rows["lost"]["problem"]
    assert (rows["far"]["state"], rows["far"]["url"]) == ("remote", "http://127.0.0.1:9")
    text = place.run("list").stdout
    assert "not loaded, pinned" in text
    assert "lost    " in text
    assert "cannot be run" in text
    assert not place.json("ps")["running"]


def test_show_has_the_facts_of_the_file_and_of_the_entry(place: CommandPlace) -> None:
    """Of a name, of a path, and of an endpoint; a missing file is said and is no failure."""
    facts = place.json("show", "writer")
    assert (facts["architecture"], facts["trained_context"]) == ("qwen2", 8192)
    assert (facts["context_per_slot"], facts["chat_template"], facts["slots"]) == (1024, True, 1)
    assert facts["from"].endswith("keepwarm.toml:" + facts["from"].rpartition(":")[2])
    text = place.run("show", "writer").stdout
    assert "1024 tokens, 1024 for a request" in text
    assert place.json("show", facts["file"])["model"] == "writer"
    assert place.run("show", "far").stdout.split()[-2:] == ["there", "far"]
    lost = place.run("show", "lost")
    assert (lost.exit_code, "cannot be opened" in lost.stdout) == (0, True)
    assert place.json("show", "poet", code=2)["error"]["error"] == "UnknownModel"


def test_stop_and_logs_say_so_where_nothing_runs(place: CommandPlace) -> None:
    """No keeper is started for them, and the model of an endpoint is not held here."""
    assert place.json("stop", "writer")["outcome"] == "absent"
    assert place.json("stop", "far")["outcome"] == "remote"
    assert "keepwarm does not hold it" in place.run("stop", "far").stdout
    quiet = place.run("logs", "writer")
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    assert "No keeper runs" in quiet.stderr
    assert "its log is there" in place.run("logs", "far").stderr
    assert not place.json("ps")["running"]


@pytest.mark.real
def test_stop_unloads_an_idle_model_refuses_a_pinned_one_and_lets_a_busy_one_finish(
    shared: CommandPlace,
) -> None:
    """What is so is said in words, and as one word for programs."""
    shared.json("load", "writer")
    assert shared.json("stop", "writer") == {"model": "writer", "outcome": "gone", "processes": []}
    assert shared.run("stop", "writer").stdout == "writer is not loaded.\n"
    assert shared.json("stop", "judge", code=3)["error"]["error"] == "AdmissionDenied"
    with shared.held("writer") as busy:
        told = shared.json("stop", "writer")
        assert told == {"model": "writer", "outcome": "leaving", "processes": [busy.pid]}
    assert wait_until(lambda: shared.engine("writer")["state"] == "absent")


@pytest.mark.real
def test_logs_prints_an_engines_log_and_follows_the_next_engine(shared: CommandPlace) -> None:
    """The last lines first, then each as it comes, also after the engine was replaced."""
    shared.json("load", "writer")
    assert len(shared.run("logs", "writer", "-n", "3").stdout.splitlines()) == 3
    assert "ready on" in shared.run("logs", "-n", "999").stdout
    following = shared.start("logs", "writer", "-n", "1", "--follow")
    assert following.stdout is not None
    assert following.stdout.readline()
    shared.run("stop", "writer")
    shared.json("load", "writer")
    while b"model loaded" not in (line := following.stdout.readline()):
        assert line
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=LIMIT_S)
    assert following.returncode == 130


@pytest.mark.real
def test_a_file_is_asked_without_a_configuration_and_stays_warm(
    bare: CommandPlace, tiny_models: dict[str, Path]
) -> None:
    """A second file joins the first; both are listed, and the names serve as well as the paths."""
    for role in ("producer", "evaluator"):
        shutil.copy(tiny_models[role], bare.root / f"{role}.gguf")
    cold = bare.json("chat", "./producer.gguf", "Hello", *SHORT)
    assert (cold["model"], cold["residency"]["cold"]) == ("producer", True)
    assert bare.json("chat", "evaluator.gguf", "Hello", *SHORT)["model"] == "evaluator"
    assert not bare.json("chat", "./producer.gguf", "Hello", *SHORT)["residency"]["cold"]
    assert not bare.json("chat", "producer", "Hello", *SHORT)["residency"]["cold"]
    rows = bare.json("list")["models"]
    assert [(row["model"], row["state"]) for row in rows] == [
        ("producer", "idle"),
        ("evaluator", "idle"),
    ]
    assert bare.json("stop", "./evaluator.gguf")["outcome"] == "gone"
    lost = bare.json("chat", "./lost.gguf", "Hello", code=2)["error"]
    assert "there is no such file" in lost["message"]


@pytest.mark.real
def test_a_file_joins_a_configuration_and_leaves_with_a_reload(
    place: CommandPlace, models: dict[str, Any], tiny_models: dict[str, Path]
) -> None:
    """The keeper's budget holds for it, and a file that is configured is that model."""
    place.configure(models, budget={"limit": "60MiB"})
    assert place.json("chat", str(tiny_models["producer"]), "Hello", *SHORT)["model"] == "writer"
    guest = shutil.copy(tiny_models["classifier"], place.root / "guest.gguf")
    answer = place.json("chat", str(guest), "Hello", *SHORT)
    assert answer["model"] == "guest"
    assert answer["residency"]["evicted"] == ["writer"]
    (device,) = place.json("ps")["devices"]
    assert device["reserved_bytes"] <= 60 * 2**20
    assert place.json("chat", "writer", "Hello", *SHORT)["residency"]["cold"]
    assert place.json("config", "reload")["removed"] == ["guest"]


def test_a_files_model_has_a_name_that_no_other_has(tmp_path: Path) -> None:
    """Of the file, without what a name may not hold; the same file is the same model."""
    file = tmp_path / "My Model (v2).Q8_0.gguf"
    file.write_bytes(b"GGUF")
    chosen = with_file(Config(), file)
    assert chosen.model == "My-Model-v2-.Q8_0"
    assert chosen.entry.path == file
    other = tmp_path / "other" / file.name
    taken = with_file(chosen.config, other, "embedder")
    assert taken.model.startswith("My-Model-v2-.Q8_0-")
    assert taken.entry.role == "embedder"
    assert file_of("writer") is None
    assert file_of("org/model") is None
    assert file_of("~no-such-user/x.gguf") is not None
    assert json.dumps(taken.config.to_mapping())


def test_the_role_of_a_file_is_read_from_it(
    place: CommandPlace, tiny_models: dict[str, Path]
) -> None:
    """An embedder is no chat model, whichever command names it first; a given role counts."""
    assert with_file(Config(), tiny_models["embedder"]).entry.role == "embedder"
    assert with_file(Config(), tiny_models["producer"]).entry.role is None
    assert with_file(Config(), tiny_models["producer"], "embedder").entry.role == "embedder"
    refused = place.run("chat", str(tiny_models["embedder"]), "Hello")
    assert refused.exit_code == 2
    assert "embed" in refused.stderr
