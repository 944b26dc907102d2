"""Where a user's keeper is: one folder whatever the session, and typed errors where there is none."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.machine.files.file_locks import lock_keeper
from backends.machine.files.folders import SOCKET_PATH_BYTES
from budget.errors import ConfigError
from shim import Shim, paths
from shim.paths import keeper_socket, lock_dir, make_place, runtime_dir, runtime_places, state_dir
from tests.users import OTHER_UID, Say, as_root, said_by_other_user

SESSIONS: dict[str, dict[str, str]] = {
    "desktop": {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1", "TMPDIR": "/var/tmp"},
    "cron": {"HOME": "/home/u"},
    "service": {"XDG_RUNTIME_DIR": "/run/service", "XDG_STATE_HOME": "/var/lib/x"},
    "bare": {},
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        yield Path(folder)


@pytest.fixture
def places(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The places of a user with the home `home`, and with two more places."""
    monkeypatch.setattr(paths, "home_of", lambda _uid: home)
    (first, *_) = runtime_places()
    found = [first, home / "run" / "keepwarm", home / "tmp-keepwarm"]
    (home / "run").mkdir()
    monkeypatch.setattr(paths, "runtime_places", lambda: iter(found))
    return found


@pytest.mark.parametrize("session", SESSIONS)
def test_every_session_of_a_user_leads_to_one_folder(places: list[Path], session: str) -> None:
    """Neither HOME nor XDG_RUNTIME_DIR nor TMPDIR has a part in it; it is private."""
    folder = runtime_dir(SESSIONS[session])
    assert folder == places[0]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_the_places_are_those_of_the_user_and_none_is_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Home, then what logind makes, then what every machine has; all short enough or passed over."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/nowhere")
    uid = os.getuid()
    *_, logind, memory, temporary = runtime_places()
    assert logind == Path(f"/run/user/{uid}/keepwarm")
    assert [memory, temporary] == [Path(f"/dev/shm/keepwarm-{uid}"), Path(f"/tmp/keepwarm-{uid}")]
    assert not any("nowhere" in str(place) for place in runtime_places())


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_running_keeper_is_found_wherever_it_was_started(places: list[Path], where: int) -> None:
    """A session in which an earlier place could not be used had to start it elsewhere."""
    make_place(places[where])
    with lock_keeper(places[where]):
        assert runtime_dir({}) == places[where]
    assert runtime_dir({}) == places[0]


def test_a_place_that_cannot_be_used_is_passed_over(places: list[Path]) -> None:
    """Another's folder, a link, a folder that others may enter, one that cannot be made."""
    places[0].parent.mkdir(parents=True)
    places[0].symlink_to(places[0].parent)
    assert runtime_dir({}) == places[1]
    places[1].chmod(0o755)
    assert runtime_dir({}) == places[2]
    places[2].rmdir()
    places[2].write_text("a file")
    with pytest.raises(ConfigError, match=r"mode 0755.*File exists") as caught:
        runtime_dir({})
    assert "$KEEPWARM_RUNTIME_DIR" in caught.value.hint


def test_a_home_that_is_too_long_for_sockets_is_passed_over(
    places: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engines' sockets have to fit, not the keeper's alone."""
    long = home / ("x" * (SOCKET_PATH_BYTES - len(str(home)) - len("/e-.sock")))
    monkeypatch.setattr(paths, "runtime_places", lambda: iter([long, places[1]]))
    assert runtime_dir({}) == places[1]


def test_a_file_system_without_sockets_is_passed_over(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some homes lie on one."""

    class NoSockets(socket.socket):
        """Sockets that cannot be bound in the first place."""

        def bind(self, address: Any) -> None:
            """Refuse what such a file system refuses."""
            if str(address).startswith(str(places[0])):
                raise OSError(95, "Operation not supported")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", NoSockets)
    assert runtime_dir({}) == places[1]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda base: base / ("x" * 100), "too long for the sockets"),
        (lambda base: base / "file" / "run", "Not a directory"),
        (lambda base: base / "open", "must be a folder of mode 0700"),
        (lambda base: base / "file", "File exists"),
    ],
)
def test_a_named_folder_that_cannot_be_used_is_a_typed_error(home: Path, make, why: str) -> None:  # type: ignore[no-untyped-def]
    """It names the folder and the variable, and no other place is taken instead."""
    (home / "file").touch()
    (home / "open").mkdir(mode=0o755)
    folder = make(home)
    with pytest.raises(ConfigError, match=why) as caught:
        runtime_dir({"KEEPWARM_RUNTIME_DIR": str(folder)})
    assert caught.value.facts["folder"] == str(folder)
    assert "$KEEPWARM_RUNTIME_DIR" in caught.value.hint


def test_a_folder_that_is_named_in_code_is_checked_in_the_same_way(home: Path) -> None:
    """`Shim(runtime=...)`: absolute, private, and short enough."""
    config = {"models": {"m": {"path": "m.gguf"}}}
    with pytest.raises(ConfigError, match="too long for the sockets"):
        Shim(config, inline=False, runtime=home / ("x" * 100)).status()
    folder = Shim(config, inline=False, runtime=Path(os.path.relpath(home / "r"))).runtime
    assert folder.is_absolute()
    assert folder.samefile(home / "r")


@pytest.mark.parametrize("name", ["keeper.log", "keeper.err"])
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_log_that_cannot_be_written_is_a_typed_error_at_once(
    home: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe in its place does not hold the keeper or its client; the error names file and variable."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    file = state_dir() / name
    if kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    config = {"models": {"m": {"path": "m.gguf"}}, "budget": {"device": "host"}}
    with pytest.raises(ConfigError, match=f"cannot write to {file}") as caught:
        Shim(config, inline=False, runtime=home / "r").status()
    assert "$XDG_STATE_HOME" in caught.value.hint


@as_root
def test_a_named_folder_of_another_user_is_refused_with_the_owners_name(home: Path) -> None:
    """The other user may be root."""
    home.chmod(0o755)
    (home / "r").mkdir(mode=0o700)

    def ask(say: Say) -> None:
        try:
            runtime_dir({"KEEPWARM_RUNTIME_DIR": str(home / "r")})
        except ConfigError as error:
            say(error)

    assert "owner user root (0)" in said_by_other_user(ask)


@as_root
def test_a_user_without_a_home_has_a_place(home: Path) -> None:
    """A container's user that is in no password database has no home; state goes there, too."""

    def ask(say: Say) -> None:
        folder = runtime_dir({})
        say(f"{folder} {state_dir({})}")
        (folder / "state").rmdir()
        folder.rmdir()

    place = f"/dev/shm/keepwarm-{OTHER_UID}"
    assert said_by_other_user(ask) == f"{place} {place}/state"


def test_state_goes_where_the_standard_says(home: Path) -> None:
    """XDG_STATE_HOME, else the home's own."""
    assert state_dir({"HOME": str(home)}) == home / ".local/state/keepwarm"
    assert state_dir({"XDG_STATE_HOME": str(home / "s")}) == home / "s" / "keepwarm"


@pytest.mark.parametrize("home_is", ["a file", "read-only"])
def test_without_a_writable_home_state_lies_beside_the_socket_with_one_warning(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, home_is: str
) -> None:
    """It is private, and the warning names the folder, why, and the variable."""
    broken = home / "broken"
    if home_is == "a file":
        broken.touch()
    else:
        (broken / ".local/state/keepwarm").mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda *_args: False)
    env = {"HOME": str(broken), "KEEPWARM_RUNTIME_DIR": str(home / "run")}
    with caplog.at_level(logging.WARNING):
        assert state_dir(env) == home / "run" / "state"
        assert state_dir(env) == home / "run" / "state"
    assert (home / "run" / "state").stat().st_mode & 0o777 == 0o700
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(broken) in line
    assert "$XDG_STATE_HOME" in line


def test_a_folder_of_locks_that_cannot_be_made_is_a_typed_error(home: Path) -> None:
    """It names the folder and the variable; without the variable there is no folder at all."""
    (home / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory") as caught:
        lock_dir({"KEEPWARM_LOCK_DIR": str(home / "file" / "locks")})
    assert "$KEEPWARM_LOCK_DIR" in caught.value.hint
    assert lock_dir({}) is None
    assert lock_dir({"KEEPWARM_LOCK_DIR": str(home / "locks")}) == home / "locks"


def test_a_place_is_made_again_only_where_what_is_around_it_is_ours_or_there(
    places: list[Path], home: Path
) -> None:
    """What logind removed is not made again in its stead."""
    assert make_place(places[0]) == places[0]
    (home / "run").rmdir()
    with pytest.raises(FileNotFoundError):
        make_place(places[1])
    assert keeper_socket(places[0]).parent == places[0]
