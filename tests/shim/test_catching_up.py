"""A program whose keeper was given another configuration after the program read its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import Config, ConfigError, Shim
from tests.shim.fake_keeper import FakeKeeper, Message

MODEL = '[models.m]\npath = "/nowhere.gguf"\n'
OTHER_MODEL = '[models.m]\npath = "/elsewhere.gguf"\n'
BUDGET = '[budget]\nlimit = "1GiB"\n'
OTHER_BUDGET = '[budget]\nlimit = "2GiB"\n'


def answers(_: Message) -> Iterator[Message]:
    """A keeper that does all that it is asked for."""
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


def test_a_reloaded_file_is_read_again(
    file: Path, runtime_dir: Path, heard: pytest.LogCaptureFixture
) -> None:
    """Also its models; the program logs it once and goes on."""
    with Shim(str(file), runtime=runtime_dir) as shim:
        file.write_text(OTHER_BUDGET + OTHER_MODEL)
        with FakeKeeper(runtime_dir, str(file), answers):
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
        assert "differs in budget" in record.getMessage()
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
    config = Config.from_mapping({"models": {"m": {"path": "/nowhere.gguf"}}})
    config.remember(file, {}, read_at=1e12)
    return config


@pytest.mark.parametrize("case", ["its models differ", "it is newer", "it has another file"])
def test_a_program_that_means_something_else_is_refused(
    case: str, file: Path, runtime_dir: Path, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    """It would get a model, or bytes, that it did not ask for; the error says so every time."""
    given: Any = str(file)
    if case == "it is newer":
        given = later(file)
    if case == "it has another file":
        given = str(tmp_path / "another.toml")
        Path(given).write_text(BUDGET + MODEL)
    with Shim(given, runtime=runtime_dir, inline=False) as shim:
        file.write_text(OTHER_BUDGET + OTHER_MODEL)
        with FakeKeeper(runtime_dir, str(file), answers):
            if case == "its models differ":
                file.write_text(BUDGET + MODEL)
            for _ in range(2):
                with pytest.raises(ConfigError, match="differs"):
                    shim.load("m")
    assert heard.records == []
