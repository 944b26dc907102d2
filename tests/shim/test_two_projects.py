"""Programs of several projects at one keeper: the device is shared, the names are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import ConfigError, Shim, UnknownModel
from shim.cli.console.progress import waiting_for
from shim.cli.console.running import engine_row
from shim.wire.fingerprint import called
from tests.processes import wait_until
from tests.shim.conftest import Stage

Open = Callable[[str, str], Shim]


@pytest.fixture
def project(stage: Stage, tmp_path: Path) -> Iterator[Open]:
    """Opens a program of a project, by the name of its folder and the text of its file."""
    opened = []

    def program(name: str, text: str) -> Shim:
        file = tmp_path / name / "keepwarm.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        opened.append(Shim(file, runtime=stage.shim.runtime))
        return opened[-1]

    yield program
    for shim in opened:
        shim.close()


def model(name: str, file: Path, **keys: Any) -> str:
    """A model of a configuration file."""
    more = "".join(f"{key} = {str(value).lower()}\n" for key, value in keys.items())
    return f'[models.{name}]\npath = "{file}"\ncontext = 1024\n{more}'


def names(shim: Shim) -> dict[str, dict[str, str]]:
    """The keeper's names of models, by project and the project's own name."""
    return {row["project"]: row["names"] for row in shim.status()["projects"]}


def engine_of(shim: Shim, name: str) -> str:
    """The engine that answers a call."""
    return shim.chat(name, "hello").residency.engine


def test_two_projects_call_different_files_by_one_name(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """Each gets its own, whichever comes first; the keeper names the second by its project."""
    rag = project("rag", model("a", tiny_models["producer"]))
    first, second = engine_of(stage.shim, "a"), engine_of(rag, "a")
    assert first != second
    assert (engine_of(stage.shim, "a"), engine_of(rag, "a")) == (first, second)
    rows = {row["id"]: row["models"] for row in rag.status()["engines"]}
    # Of the same file with the same settings as `b`, so one engine serves both.
    assert rows[second] == ["a@rag", "b"]
    assert names(rag)["rag"] == {"a": "a@rag"}
    assert [row["file"] for row in rag.status()["projects"]] == [None, str(rag.config.file)]


def test_projects_of_one_folder_name_are_told_apart(
    stage: Stage, project: Open, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """By a digest of the file's path."""
    (tmp_path / "x").mkdir()
    one, other = (
        project(folder, model("a", tiny_models["producer"], slots=slots))
        for folder, slots in (("rag", 1), ("x/rag", 2))
    )
    assert engine_of(one, "a") != engine_of(other, "a")
    (own, second, third) = names(one).values()
    assert own["a"] == "a"
    assert second["a"] == "a@rag"
    assert third["a"].startswith("a@rag-")


def test_the_same_name_with_the_same_settings_is_one_model(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """Bytes are booked once, and nothing has to be taken in."""
    rag = project("rag", model("a", tiny_models["classifier"], slots=2))
    assert engine_of(rag, "a") == engine_of(stage.shim, "a")
    assert len(names(rag)) == 1


def test_models_are_taken_in_one_by_one_and_stay_the_projects_own(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """A declaration hands over all that it names; a hint concerns its own project's model alone."""
    text = "".join(model(n, tiny_models["producer"], slots=2) for n in ("a", "n", "o"))
    rag = project("rag", text + '[models.far]\nurl = "http://127.0.0.1:9"\n')
    stage.shim.load("a")
    rag.load("a")
    assert names(rag)["rag"] == {"a": "a@rag"}
    with rag.plan(["n", "a"]):
        assert names(rag)["rag"] == {"a": "a@rag", "n": "n@rag"}
    rag.unload("a")
    assert [row["models"] for row in rag.status()["engines"] if row["state"] == "idle"] == [["a"]]
    with pytest.raises(UnknownModel, match="nothing"):
        rag.chat("nothing", "hello")


def test_an_edited_model_is_a_new_engine_and_the_old_one_leaves_when_it_is_idle(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """A program that began before the edit ends its answer, and follows the file with the next one."""
    old = project("rag", model("m", tiny_models["producer"], threads=1))
    stream = old.stream("m", "hello")
    next(stream)
    (before,) = [row["id"] for row in old.status()["engines"] if row["leases"]]
    new = project("rag", model("m", tiny_models["producer"], slots=2))
    after = engine_of(new, "m")
    assert after != before
    assert "".join(map(str, stream)).endswith("three")
    assert wait_until(lambda: before not in {row["id"] for row in new.status()["engines"]})
    assert engine_of(old, "m") == after
    assert old.config.models["m"].slots == 2


def test_a_budget_that_differs_refuses_the_program_that_wrote_it(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """With both values and both files. The others go on, and a project that leaves it out is served."""
    wide = project("wide", '[budget]\nlimit = "70MB"\n' + model("a", tiny_models["producer"]))
    with pytest.raises(ConfigError) as refused:
        wide.load("a")
    for said in (
        "70000000B",
        "60000000B",
        str(wide.config.file),
        "a configuration without a file",
        "config reload",
    ):
        assert said in str(refused.value)
    same = project("same", '[budget]\nlimit = "60MB"\n' + model("a", tiny_models["producer"]))
    assert engine_of(same, "a")
    assert engine_of(stage.shim, "a")


def test_a_reload_of_one_project_drops_what_no_program_of_another_uses(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """What a connected program uses stays, and so does what is pinned to last."""
    text = "".join(model(n, tiny_models["producer"]) for n in ("m", "pinned"))
    gone, here = project("gone", text), project("here", text.replace("1024", "512"))
    gone.load("m")
    gone.pin("pinned", persist=True)
    here.load("m")
    gone.close()
    reloads = project("reloads", model("m", tiny_models["classifier"], slots=3))
    assert wait_until(lambda: "m@gone" in reloads.reload()["removed"])
    assert names(reloads)["gone"] == {"pinned": "pinned@gone"}
    assert names(reloads)["here"] == {"m": "m@here"}
    assert names(reloads)["reloads"] == {"m": "m@reloads"}
    assert engine_of(here, "m")


def test_a_strangers_folder_gets_nothing_from_a_project_that_is_trusted(
    stage: Stage,
    project: Open,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The keeper has taken in the same arguments of another project, whose file was named."""
    risky = (
        model("a", tiny_models["producer"]) + 'engine_args = ["--chat-template-file", "/tmp/x"]\n'
    )
    named = project("named", risky)
    named.plan(["a"])
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "keepwarm.toml").write_text(risky)
    monkeypatch.chdir(stranger)
    monkeypatch.delenv("KEEPWARM_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="is not trusted"):
        Shim(runtime=stage.shim.runtime)


def test_a_reload_without_a_file_is_an_error_and_removes_nothing(stage: Stage) -> None:
    """The configuration was made in code, so there is nothing to read again."""
    with pytest.raises(ConfigError, match="from no file"):
        stage.shim.reload()
    assert engine_of(stage.shim, "a")


def test_a_command_about_a_model_concerns_no_other_projects(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """A status tells which engine a reference means; one of a model that nothing asked for means none."""
    rag = project("rag", model("a", tiny_models["producer"]))
    stage.shim.load("a")
    status = rag.status()
    assert engine_row(status, called(rag.config, "a")) is None
    assert engine_row(status, called(stage.shim.config, "a")) is not None
    rag.load("a")
    row = engine_row(rag.status(), called(rag.config, "a"))
    assert row is not None
    assert row["models"] == ["a@rag", "b"]
    assert waiting_for(rag.status(), "a", 1, called(rag.config, "a")) == "a is idle"


def test_a_pin_that_was_ended_stays_so_until_its_own_configuration_is_read_anew(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """Another project's model that is taken in, or its reload, does not bring it back."""

    def pinned() -> list[list[str]]:
        return [row["models"] for row in own.status()["engines"] if row["pinned"]]

    own = project("own", model("judge", tiny_models["classifier"], pin=True))
    own.load("judge")
    assert pinned() == [["judge@own"]]
    own.unpin("judge")
    other = project("other", model("m", tiny_models["producer"], threads=1))
    other.load("m")
    assert pinned() == []
    other.reload()
    assert pinned() == []
    own.reload()
    own.load("judge")
    assert pinned() == [["judge@own"]]


def test_a_default_that_is_written_out_is_an_edit_where_the_file_counts_otherwise(
    stage: Stage, project: Open, tiny_models: dict[str, Path]
) -> None:
    """An embedder's batch that is left out follows its context; a written one does not."""
    text = model("v", tiny_models["embedder"]) + 'role = "embedder"\n'
    left_out = project("vec", text)
    before = left_out.embed("v", "x").residency.engine
    written = project("vec", text + "n_ubatch = 512\n")
    assert written.embed("v", "x").residency.engine != before
