"""Real keepers whose folders vanish, which end while they are called, crash, or are in another session."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.machine.files.file_locks import KEEPER_LOCK, FileLock
from shim.cli import main
from shim.cli.console.running import ask_running, is_running
from shim.wire.start_order import IN_FORCE
from tests.keeper.support import World, world
from tests.places import opened
from tests.processes import alive, wait_until
from tests.users import ROOT, as_root

pytestmark = pytest.mark.real

UNTIL_GO = 'while not os.path.exists("go"): time.sleep(0.02)'
STATUS = 'say(pid=s.status()["keeper"]["pid"])'


@pytest.fixture
def place(tiny_models: dict[str, Path]) -> Iterator[World]:
    """A world with one model, which most tests here do not load."""
    with world() as made:
        made.hurry(process__daemon__LOOK_EVERY_S=0.1)
        made.configure({"a": {"path": str(tiny_models["classifier"]), "context": 512}})
        yield made


def keepers_of(runtime: Path) -> list[int]:
    """The keeper processes that were started for a folder, those that wait to begin as well."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"shim.keeper" in words and os.fsencode(runtime) in words and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def test_a_keeper_whose_folder_is_removed_is_found_again(place: World) -> None:
    """By the programs that use it and by the next one; it is the same keeper, and it is alone."""
    first = place.client(
        f"{STATUS}\nsys.stdin.readline\nwhile not os.path.exists('go'): time.sleep(0.02)\n{STATUS}"
    )
    pid = first.hear()["pid"]
    shutil.rmtree(place.runtime)
    assert wait_until(lambda: is_running(place.runtime))
    assert place.keeper_pid() == pid
    assert place.client(STATUS).hear()["pid"] == pid
    (place.root / "go").touch()
    assert first.hear()["pid"] == pid
    assert place.runtime.stat().st_mode & 0o777 == 0o700
    assert (place.runtime / IN_FORCE).exists()
    assert wait_until(lambda: not FileLock(place.runtime / KEEPER_LOCK).try_acquire())
    assert keepers_of(place.runtime) == [pid]


def test_a_keeper_whose_socket_is_removed_or_replaced_listens_again(place: World) -> None:
    """A cleaner takes one file; a stray program binds its own in the place of another."""
    pid = place.client(STATUS).hear()["pid"]
    for name in ("keeper.sock", KEEPER_LOCK):
        (place.runtime / name).unlink()
        assert wait_until(lambda: is_running(place.runtime))
        assert place.keeper_pid() == pid
    (place.runtime / "keeper.sock").unlink()
    (place.runtime / "keeper.sock").write_text("not a socket")
    # What is no socket is not removed, so the keeper cannot be reached and ends.
    assert wait_until(lambda: not alive(pid))
    assert (place.runtime / "keeper.sock").read_text() == "not a socket"


class LoggedIn(World):
    """A world whose keeper lies where the system makes and removes what is around it."""

    @property
    def runtime(self) -> Path:
        """As `/run/user/UID/keepwarm`."""
        return self.root / "u" / "r"


def log_in(root: Path) -> LoggedIn:
    """Make what is around the keeper's folder."""
    (root / "u").mkdir()
    return LoggedIn(root)


def test_a_keeper_whose_place_cannot_be_made_again_ends(tiny_models: dict[str, Path]) -> None:
    """As when logind removes /run/user/UID: nothing holds the devices in vain, no engine is left."""
    with opened(log_in) as place:
        place.hurry(process__daemon__LOOK_EVERY_S=0.1)
        place.configure({"a": {"path": str(tiny_models["classifier"]), "context": 512}})
        pid = place.client('s.load("a")\n' + STATUS).hear()["pid"]
        engines = place.engine_pids()
        assert engines
        shutil.rmtree(place.root / "u")
        assert wait_until(lambda: not alive(pid))
        assert not any(alive(engine) for engine in engines)


def test_a_call_made_while_the_keeper_ends_waits_and_starts_the_next(place: World) -> None:
    """The keeper that ends accepts no client and holds its lock until its engines are gone."""
    place.runtime.mkdir(mode=0o700, exist_ok=True)
    ending = FileLock(place.runtime / KEEPER_LOCK)
    assert ending.try_acquire()
    clients = [place.client(STATUS) for _ in range(2)]
    assert wait_until(lambda: bool(keepers_of(place.runtime)))
    assert all(client.process.poll() is None for client in clients)
    ending.release()
    (pid,) = {client.hear()["pid"] for client in clients}
    assert keepers_of(place.runtime) == [pid]


def test_a_program_goes_on_over_keepers_that_are_stopped_between_its_calls(place: World) -> None:
    """Its call comes while the keeper ends its engine, and is answered by the next keeper."""
    client = place.client(
        """
for n in range(2):
    s.chat("a", "Hello.", max_tokens=1)
    say(pid=s.status()["keeper"]["pid"])
    while not os.path.exists(f"go-{n}"): time.sleep(0.001)
"""
    )
    pids = set()
    for n in range(2):
        pids.add(client.hear()["pid"])
        ask_running("stop", runtime=place.runtime)
        (place.root / f"go-{n}").touch()
    assert client.process.wait(60) == 0
    assert len(pids) == 2


def test_after_a_crash_the_configuration_that_was_reloaded_is_in_force(
    place: World, tiny_models: dict[str, Path]
) -> None:
    """A program that read the file before the reload starts the next keeper, and follows it."""
    old = place.client(
        """
say(pid=s.status()["keeper"]["pid"])
while not os.path.exists("go"): time.sleep(0.02)
try: s.load("a")
except shim.UnknownModel as error: say(models=list(s.config.models), error=str(error))
"""
    )
    pid = old.hear()["pid"]
    place.configure({"b": {"path": str(tiny_models["producer"]), "context": 512}})
    assert place.client("say(**s.reload())\n").hear()["added"] == ["b"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    (place.root / "go").touch()
    heard = old.hear()
    assert heard["models"] == ["b"]
    assert "as it is now, has no local model a" in heard["error"]
    assert place.client('s.load("b")\nsay(ok=True)').hear() == {"ok": True}
    assert place.keeper_pid() != pid


def test_stopping_a_keeper_that_crashed_forgets_what_it_ran_with(place: World) -> None:
    """The configuration of a keeper that was stopped on purpose does not come back."""
    pid = place.client(STATUS).hear()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    assert (place.runtime / IN_FORCE).exists()
    done = CliRunner().invoke(main, ["keeper", "stop"], env=place.env)
    assert done.output == "No keeper runs.\n"
    assert not (place.runtime / IN_FORCE).exists()


def test_nothing_is_left_in_the_folder_but_locks_and_the_descriptor_limit_is_raised(
    place: World,
) -> None:
    """Orders of clients that were killed are swept; what is in force goes with a keeper that ends.

    The keeper may open as many files as the system allows, whatever soft limit its first client had.
    """
    left = place.runtime / "order-4711-1.json"
    left.write_text("{}")
    (place.runtime / "order-of-tea.json").write_text("{}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        pid = place.client(STATUS).hear()["pid"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    assert not left.exists()
    assert (place.runtime / IN_FORCE).stat().st_mode & 0o777 == 0o600
    place.ask("stop")
    assert wait_until(lambda: not alive(pid))
    ours = {KEEPER_LOCK, "start.lock"}
    assert {path.name for path in place.runtime.iterdir()} == {*ours, "order-of-tea.json"}


def test_a_keeper_stays_after_its_terminal_and_ends_in_order_by_a_signal(place: World) -> None:
    """It has a session of its own; SIGHUP and SIGTERM end it as `keeper stop` does."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        pid = place.client(STATUS).hear()["pid"]
        assert os.getsid(pid) == pid
        os.kill(pid, number)
        assert wait_until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        assert not (place.runtime / IN_FORCE).exists()


class Session:
    """Commands in a session of their own: other variables, other /tmp, the same user and home."""

    def __init__(self, place: World, home: Path, **env: str) -> None:
        (place.root / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/sh\n")
        self._passwd = place.root / "passwd"
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "KEEPWARM_LOCK_DIR": place.env["KEEPWARM_LOCK_DIR"],
            "KEEPWARM_CONFIG": str(place.config),
            **env,
        }

    def keepwarm(self, *args: str) -> dict[str, Any]:
        """What a command prints with `--json`."""
        mounts = f"mount --bind {self._passwd} /etc/passwd && mount -t tmpfs private /var/tmp"
        command = 'exec "$0" -m shim.cli "$@" --json'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{mounts} && {command}", sys.executable, *args],
            env=self._env,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@as_root
def test_cron_ssh_and_services_find_the_keeper_of_a_desktop_session(place: World) -> None:
    """One user has one keeper, whatever HOME, XDG_RUNTIME_DIR, TMPDIR and /tmp are."""
    home = place.root / "h"
    home.mkdir()
    desktop = Session(place, home, HOME=str(home), XDG_RUNTIME_DIR=str(place.runtime))
    service = Session(
        place, home, HOME="/nonexistent", TMPDIR="/var/tmp", XDG_STATE_HOME="/var/tmp"
    )
    started = desktop.keepwarm("keeper", "start")
    try:
        assert started["started"]
        assert started["runtime"].startswith(str(home))
        again = service.keepwarm("keeper", "start")
        assert not again["started"]
        assert (again["pid"], again["runtime"]) == (started["pid"], started["runtime"])
        assert Session(place, home).keepwarm("keeper", "status")["pid"] == started["pid"]
    finally:
        assert service.keepwarm("keeper", "stop")["stopped"]


def test_a_program_without_descriptors_gets_that_error(place: World) -> None:
    """A typed error that names the limit, not a bare OSError; with descriptors the same call works."""
    client = place.client(
        """
import resource, socket
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
s.status()
other = Shim(os.environ["KEEPWARM_CONFIG"])
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    other.status()
except shim.KeepwarmError as error:
    name = type(error).__name__
for fd in taken:
    os.close(fd)
say(error=name, pid=other.status()["keeper"]["pid"])
"""
    )
    said = client.hear()
    assert said["error"] == "QueueFull"
    assert said["pid"] == place.keeper_pid()
