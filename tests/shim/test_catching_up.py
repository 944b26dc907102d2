"""A program whose keeper was given another configuration after the program read its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import Config, ConfigError, Shim, UnknownModel
from shim.config import ModelEntry, load_config
from shim.wire.fingerprint import reference
from tests.shim.fake_keeper import FakeKeeper, Message

MODEL = '[models.m]\npath = "/nowhere.gguf"\n'
OTHER_MODEL = '[models.m]\npath = "/elsewhere.gguf"\n'
BUDGET = '[budget]\nlimit = "1GiB"\n'
OTHER_BUDGET = '[budget]\nlimit = "2GiB"\n'


def answers(_: Message) -> Iterator[Message]:
    """A keeper that does all that it is asked for."""
    yield {"ok": {}}


class Keeper:
    """What a keeper says whose configuration is that of the file as it lies there at first."""

    def __init__(self, file: Path) -> None:
        self.config = load_config(file)
        self.known = {reference("m", self.config.models["m"])}
        self.taken: list[Message] = []

    def says(self, message: Message) -> Iterator[Message]:
        """Refuses models with other settings, and older readings of the file."""
        if message["op"] == "take_in":
            self.taken.append(message)
            ours = message["file"] == str(self.config.file)
            if ours and message["read_at"] < self.config.read_at:
                newer = ConfigError("The keeper's reading is newer.", newer=True)
                yield {"error": newer.to_wire()}
                return
            for name, entry in message["entries"].items():
                self.known.add(reference(name, ModelEntry.model_validate(entry)))
        elif message["model"] not in self.known:
            unknown = UnknownModel("Another model.", not_taken_in=[message["model"]])
            yield {"error": unknown.to_wire()}
            return
        yield {"ok": {}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The configuration file of a program."""
    file = tmp_path / "keepwarm.toml"
    file.write_text(BUDGET + MODEL)
    return file


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log lines of a program."""
    caplog.set_level(logging.WARNING, "keepwarm")
    return caplog


def connect_anew(shim: Shim, times: int = 2) -> None:
    """Connect to the keeper again, as after a crash, and ask for something."""
    for _ in range(times):
        shim._session.connections.new().close()
        shim.load("m")


@pytest.mark.parametrize("budget", [BUDGET, OTHER_BUDGET])
def test_a_reloaded_file_is_read_again(
    file: Path, runtime_dir: Path, heard: pytest.LogCaptureFixture, budget: str
) -> None:
    """Where its budget changed, or a model; the program logs it once and goes on."""
    with Shim(str(file), runtime=runtime_dir) as shim:
        file.write_text(budget + OTHER_MODEL)
        with FakeKeeper(runtime_dir, str(file), Keeper(file).says):
            connect_anew(shim)
            assert shim.config.models["m"].path == Path("/elsewhere.gguf")
    (record,) = heard.records
    assert "read again" in record.getMessage()


def test_a_program_whose_own_models_agree_goes_on(
    file: Path, runtime_dir: Path, heard: pytest.LogCaptureFixture
) -> None:
    """Its file says something else again, or cannot be read: what is in force counts."""
    for now in (BUDGET + OTHER_MODEL, "not TOML", None):
        heard.clear()
        file.write_text(BUDGET + MODEL)
        with Shim(str(file), runtime=runtime_dir) as shim:
            file.write_text(OTHER_BUDGET + MODEL)
            with FakeKeeper(runtime_dir, str(file), answers):
                file.unlink() if now is None else file.write_text(now)
                connect_anew(shim)
        (record,) = heard.records
        assert "differs in budget.limit (2147483648B instead of 1073741824B)" in record.getMessage()
        (runtime_dir / "keeper.sock").unlink()


def test_a_configuration_made_in_code_goes_on_where_its_models_agree(
    runtime_dir: Path, heard: pytest.LogCaptureFixture
) -> None:
    """There is nothing that could be read again."""
    mine, theirs = (
        {"budget": {"limit": limit}, "models": {"m": {"path": "/nowhere.gguf"}}}
        for limit in ("1GiB", "2GiB")
    )
    with (
        Shim(mine, runtime=runtime_dir, inline=False) as shim,
        FakeKeeper(runtime_dir, theirs, answers),
    ):
        connect_anew(shim)
    assert len(heard.records) == 1


def later(file: Path) -> Config:
    """A configuration as it was read long after every other one here."""
    config = Config.from_mapping(
        {"budget": {"limit": "1GiB"}, "models": {"m": {"path": "/nowhere.gguf"}}}
    )
    config.remember(file, {}, read_at=1e12)
    return config


@pytest.mark.parametrize("case", ["it is newer", "it has another file"])
def test_a_program_with_another_budget_is_refused(
    case: str, file: Path, runtime_dir: Path, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    """It would get bytes that it did not ask for; the error says so every time."""
    given: Any = later(file)
    if case == "it has another file":
        given = str(tmp_path / "another.toml")
        Path(given).write_text(BUDGET + MODEL)
    with Shim(given, runtime=runtime_dir, inline=False) as shim:
        file.write_text(OTHER_BUDGET + OTHER_MODEL)
        with FakeKeeper(runtime_dir, str(file), answers):
            for _ in range(2):
                with pytest.raises(ConfigError, match="differs"):
                    shim.load("m")
    assert heard.records == []


def test_models_of_another_file_are_handed_over_at_their_first_request(
    file: Path, runtime_dir: Path, tmp_path: Path
) -> None:
    """Once, and each alone: models that are not asked for, and endpoints, stay with the program."""
    other = tmp_path / "another.toml"
    more = '[models.n]\npath = "/n.gguf"\n[models.far]\nurl = "http://far:1"\n'
    other.write_text(OTHER_MODEL + more)
    keeper = Keeper(file)
    with FakeKeeper(runtime_dir, str(file), keeper.says), Shim(other, runtime=runtime_dir) as shim:
        shim.load("m")
        shim.load("m")
        (taken,) = keeper.taken
        assert taken["file"] == str(other)
        assert taken["entries"] == {"m": {"path": "/elsewhere.gguf"}}


def test_a_program_that_cannot_read_its_changed_file_again_is_refused_each_time(
    file: Path, runtime_dir: Path
) -> None:
    """It would get another model than it read of; a model that is gone from the file is named."""
    with Shim(str(file), runtime=runtime_dir) as shim:
        file.write_text(BUDGET + OTHER_MODEL)
        with FakeKeeper(runtime_dir, str(file), Keeper(file).says):
            file.write_text("not TOML")
            for _ in range(2):
                with pytest.raises(ConfigError, match="newer"):
                    shim.load("m")
            file.write_text(BUDGET + OTHER_MODEL.replace("models.m", "models.n"))
            with pytest.raises(UnknownModel, match="as it is now, has no local model m"):
                shim.load("m")


def test_other_programs_that_read_the_file_faster_refuse_no_request(
    file: Path, runtime_dir: Path
) -> None:
    """After an edit all programs read again; the keeper may have taken in a later reading each time."""
    with Shim(str(file), runtime=runtime_dir) as shim:
        file.write_text(BUDGET + OTHER_MODEL)
        keeper, faster = Keeper(file), [3]

        def says(message: Message) -> Iterator[Message]:
            if message["op"] == "take_in" and faster[0]:
                faster[0] -= 1
                keeper.config = load_config(file)
            yield from keeper.says(message)

        with FakeKeeper(runtime_dir, str(file), says):
            shim.load("m")
    assert len(keeper.taken) == 4


def test_a_key_of_the_keepers_section_that_differs_is_said_and_refuses_nothing(
    file: Path, runtime_dir: Path, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    """The keeper's value counts until a reload."""
    other = tmp_path / "another.toml"
    other.write_text("[keeper]\nidle_exit = 7\n" + MODEL)
    with Shim(other, runtime=runtime_dir) as shim, FakeKeeper(runtime_dir, str(file), answers):
        connect_anew(shim)
    (record,) = heard.records
    assert "keeper.idle_exit (1800.0 instead of 7.0)" in record.getMessage()


def test_endpoints_of_the_environment_hold_for_a_configuration_made_in_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As over a file: the tag is remote here, and no business of the keeper's."""
    monkeypatch.setenv("HARNESS_ENDPOINTS", '{"m": {"url": "http://far:1"}}')
    with Shim({"models": {"m": {"path": "/nowhere.gguf"}}}, inline=False) as shim:
        assert shim.config.models["m"].remote
