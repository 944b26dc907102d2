"""Nothing is deleted that keepwarm did not write, wherever `[kv] folder` points."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.footprint.cache import cache_key
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from shim.cli import main
from shim.config import Config
from shim.keeper.kv.engine_folder import WARM, EngineFolder, slot_file
from shim.keeper.kv.folder import KEY_BYTES, MARKER, SUBFOLDER, claim, claimed, is_key
from shim.keeper.kv.keeping import KvKeeping
from shim.keeper.kv.saved_files import KvFiles
from shim.keeper.shell.fault_counts import FaultCounts

KEY = "0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba98"


def opened(folder: Path, max_age_s: float = 60.0) -> KvFiles:
    """The folder, taken."""
    files = KvFiles.open(folder, 1_000_000, max_age_s)
    assert files is not None
    return files


def kept(files: KvFiles, origin: Path, key: str = KEY) -> EngineFolder:
    """An engine folder with a warm prompt and a conversation, sealed."""
    found = origin.stat()
    stamp = [[str(origin), found.st_size, found.st_mtime_ns]]
    engine_folder = files.engine_folder(key, {"stamp": stamp, "engine": "e", "models": ["a"]})
    for name in (WARM, slot_file(0)):
        (engine_folder.folder / name).write_bytes(bytes(1000))
        engine_folder.add(name)
    engine_folder.seal(conversations=True)
    return engine_folder


def listed(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: contents of files, targets of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Something that stands for a model's file."""
    path = tmp_path / "disk" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder full of other people's things, some of which look like ours."""
    folder = tmp_path / "home"
    for name in ("photos", "cache/deep", KEY):
        (folder / name).mkdir(parents=True)
        (folder / name / "index.json").write_text("{}")
        (folder / name / "work.txt").write_text("mine")
    (folder / "lock").write_text("a diary")
    (folder / "notes.txt").write_text("mine")
    (folder / "away").symlink_to(tmp_path)
    return folder


def test_a_folder_with_other_files_keeps_them_all(
    foreign: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Work goes on in a sub-folder of our own, said once, and nothing else is touched."""
    before = listed(foreign)
    with caplog.at_level(logging.WARNING, "keepwarm"):
        for _ in range(2):
            files = opened(foreign)
            assert files.folder == foreign / SUBFOLDER
            kept(files, model)
            files.clear()
            files.discard([KEY])
            files.close()
    after = {n: v for n, v in listed(foreign).items() if not n.startswith(SUBFOLDER)}
    assert after == before
    assert [r.getMessage() for r in caplog.records] == [
        f"{foreign} is not for KV state alone, which is kept in {foreign / SUBFOLDER}"
    ]
    assert (foreign / SUBFOLDER).stat().st_mode & 0o777 == 0o700


def test_a_folder_of_our_own_that_is_full_of_other_things_is_refused(foreign: Path) -> None:
    """Not even the sub-folder's name makes a folder ours, and a link to one does not."""
    (foreign / SUBFOLDER).mkdir(mode=0o700)
    (foreign / SUBFOLDER / "work.txt").write_text("mine")
    before = listed(foreign)
    with pytest.raises(ConfigError, match="did not write"):
        claim(foreign)
    assert listed(foreign) == before
    (foreign / SUBFOLDER / "work.txt").unlink()
    (foreign / SUBFOLDER).rmdir()
    (foreign / SUBFOLDER).symlink_to(foreign / "photos")
    with pytest.raises(ConfigError, match="did not write"):
        claim(foreign)


def test_an_empty_folder_that_others_may_enter_gets_a_private_one_inside(tmp_path: Path) -> None:
    """What `mkdir` makes is 0755; its mode is its owner's business."""
    (tmp_path / "kv").mkdir(mode=0o755)
    for _ in range(2):
        files = opened(tmp_path / "kv")
        assert files.folder == tmp_path / "kv" / SUBFOLDER
        files.close()
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o755
    assert files.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_used_is_logged_and_tried_again(
    foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other users could put a folder of theirs in place of ours; the keeper runs without, and says why."""
    foreign.chmod(0o777)
    config = Config.from_mapping({"kv": {"folder": str(foreign)}, "models": {}})
    faults = FaultCounts()
    keeping = KvKeeping(None, "b1", faults)
    with caplog.at_level(logging.WARNING, "keepwarm.keeper"):
        keeping.open(config)
        keeping.expire()
    (record,) = caplog.records
    assert "other users may rename" in record.getMessage()
    assert not (foreign / SUBFOLDER).exists()
    kept = keeping.kept()
    assert (kept["folder"], "other users may rename" in kept["refused"]) == (None, True)
    (row,) = faults.rows()
    assert (row["kind"], row["count"]) == ("kv", 2)
    foreign.chmod(0o700)
    keeping.expire()
    kept = keeping.kept()
    assert (kept["folder"], kept["refused"]) == (str(foreign / SUBFOLDER), None)
    asyncio.run(keeping.close(keep=False))


def test_what_lies_among_ours_stays_and_is_named(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Folders, links and files that are not of our names, also in an engine's folder that goes."""
    files = opened(tmp_path / "kv")
    engine_folder = kept(files, model)
    files.close(keep=True)
    (engine_folder.folder / "thesis.tex").write_text("mine")
    (engine_folder.folder / "slot-9.kv").mkdir()
    (tmp_path / "kv" / "photos").mkdir()
    (tmp_path / "kv" / "photos" / "slot-0.kv").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "slot-0.kv").write_text("mine")
    (tmp_path / "kv" / OTHER).symlink_to(tmp_path / "elsewhere")
    model.write_bytes(b"GGUF, another one")
    with caplog.at_level(logging.WARNING, "keepwarm"):
        opened(tmp_path / "kv").close()
    assert sorted(p.name for p in engine_folder.folder.iterdir()) == ["slot-9.kv", "thesis.tex"]
    assert (tmp_path / "kv" / "photos" / "slot-0.kv").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "slot-0.kv").read_text() == "mine"
    (record,) = caplog.records
    for name in (f"{KEY}/slot-9.kv", f"{KEY}/thesis.tex", OTHER, "photos"):
        assert name in record.getMessage()


def test_a_link_in_an_engine_s_place_is_not_written_through(tmp_path: Path) -> None:
    """The engine runs without saved state; the caller of `engine_folder` hears why."""
    files = opened(tmp_path / "kv")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "kv" / KEY).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        files.engine_folder(KEY, {})
    files.close()


def test_state_of_a_model_that_cannot_be_reached_is_kept(tmp_path: Path, model: Path) -> None:
    """Its disk is not mounted: the conversation is there again when the disk is."""
    files = opened(tmp_path / "kv")
    engine_folder = kept(files, model)
    files.close(keep=True)
    model.parent.rename(tmp_path / "unmounted")
    files = opened(tmp_path / "kv")
    assert files.close(keep=True) == (1, 1000)
    (tmp_path / "unmounted").rename(model.parent)
    files = opened(tmp_path / "kv")
    assert set(files.engine_folder(KEY, {}).states) == {WARM, slot_file(0)}
    files.close(keep=True)
    os.utime(model, ns=(1, 1))
    opened(tmp_path / "kv").close()
    assert not engine_folder.folder.exists(), "a file that is there and changed has other state"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(5, "I/O"), OSError(19, "no device")]
)
def test_any_failure_to_look_at_a_model_keeps_its_state(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Only a file that was seen to be another one loses its state."""
    files = opened(tmp_path / "kv")
    kept(files, model)
    files.close(keep=True)
    real = os.stat

    def failing(path: str | Path, **options: bool) -> os.stat_result:
        if str(path) == str(model):
            raise error
        return real(path, **options)

    monkeypatch.setattr(os, "stat", failing)
    files = opened(tmp_path / "kv")
    assert set(files.engine_folder(KEY, {}).states) == {WARM, slot_file(0)}
    files.close()


def test_a_folder_made_before_there_was_a_marker_is_taken_over(tmp_path: Path, model: Path) -> None:
    """It holds nothing but a lock and engines' folders; with anything else in it, it is not ours."""
    files = opened(tmp_path / "kv")
    kept(files, model)
    files.close(keep=True)
    (tmp_path / "kv" / MARKER).unlink()
    (tmp_path / "kv" / "lock").write_text("4711 1000\n")
    again = opened(tmp_path / "kv")
    assert (again.folder, again.close(keep=True)) == (tmp_path / "kv", (1, 1000))
    (tmp_path / "kv" / MARKER).unlink()
    (tmp_path / "kv" / "notes.txt").write_text("mine")
    before = listed(tmp_path / "kv")
    opened(tmp_path / "kv").close()
    after = {n: v for n, v in listed(tmp_path / "kv").items() if not n.startswith(SUBFOLDER)}
    assert after == before


def test_a_marker_is_a_file_of_ours_and_nothing_else(foreign: Path) -> None:
    """A folder or a link of that name marks nothing."""
    (foreign / MARKER).mkdir()
    assert claimed(foreign) is None
    (foreign / MARKER).rmdir()
    (foreign / MARKER).symlink_to("notes.txt")
    assert claimed(foreign) is None


def test_every_engine_s_folder_has_a_name_of_the_one_form() -> None:
    """What is written under a key is found again as ours."""
    assert is_key("0" * 2 * KEY_BYTES)
    assert not any(
        map(
            is_key, ("", "kv", KEY[:-1], KEY.upper(), f"{KEY}0", cache_key("f", EngineArgs(1), "b"))
        )
    )


def test_leftovers_of_ours_go_and_unfinished_files_of_others_stay(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saves and indexes that were broken off, and damaged indexes a month later."""
    files = opened(tmp_path / "kv")
    engine_folder = kept(files, model)
    files.close(keep=True)
    names = [".index.json.999999999-1.new", "index.json.damaged", "slot-7.kv", ".index.abcd1234"]
    for name in (*names, ".vimrc.999999999-1.new"):
        (engine_folder.folder / name).write_text("")
    opened(tmp_path / "kv").close(keep=True)
    there = {p.name for p in engine_folder.folder.iterdir()}
    assert there == {"index.json", WARM, slot_file(0), ".vimrc.999999999-1.new", *names[:2]}
    later = time.time() + 40 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    opened(tmp_path / "kv", 1e9).close(keep=True)
    assert {p.name for p in engine_folder.folder.iterdir()} == there - set(names)


def command(config: Path, *args: str) -> dict[str, object]:
    """What `keepwarm kv ... --json` says."""
    done = CliRunner().invoke(main, ["--config", str(config), "kv", *args, "--json"])
    assert done.exit_code == 0, done.output
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> Path:
    """A configuration whose `[kv] folder` is `tmp_path / "kv"`, and no keeper."""
    monkeypatch.setenv("KEEPWARM_RUNTIME_DIR", str(runtime_dir / "run"))
    path = tmp_path / "keepwarm.toml"
    path.write_text(f'[kv]\nfolder = "{tmp_path / "kv"}"\n[models.a]\npath = "a.gguf"\n')
    return path


def test_listing_changes_nothing_and_waits_for_no_lock(
    tmp_path: Path, model: Path, config: Path
) -> None:
    """Not even where another keeper uses the folder, an index is damaged or a model's file changed."""
    files = opened(tmp_path / "kv")
    kept(files, model)
    damaged = kept(files, model, OTHER)
    (damaged.folder / "index.json").write_text("{")
    (damaged.folder / "thesis.tex").write_text("mine")
    model.write_bytes(b"GGUF, another one")
    before = listed(tmp_path / "kv")
    answer = command(config, "list")
    assert listed(tmp_path / "kv") == before
    assert (answer["running"], answer["total_bytes"]) == (False, 2000)
    files.close()


def test_listing_a_folder_of_others_makes_nothing_in_it(
    tmp_path: Path, foreign: Path, config: Path
) -> None:
    """No lock, no marker, no sub-folder; clearing it deletes nothing."""
    foreign.rename(tmp_path / "kv")
    before = listed(tmp_path / "kv")
    assert command(config, "list")["models"] == []
    assert command(config, "clear")["files"] == 0
    assert listed(tmp_path / "kv") == before


def test_clearing_deletes_ours_only(tmp_path: Path, model: Path, config: Path) -> None:
    """In a sub-folder, too."""
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "notes.txt").write_text("mine")
    files = opened(tmp_path / "kv")
    engine_folder = kept(files, model)
    (engine_folder.folder / "thesis.tex").write_text("mine")
    files.close(keep=True)
    answer = command(config, "list")
    assert (answer["folder"], answer["total_bytes"]) == (str(tmp_path / "kv" / SUBFOLDER), 2000)
    assert command(config, "clear")["files"] == 2
    assert (tmp_path / "kv" / "notes.txt").read_text() == "mine"
    assert (engine_folder.folder / "thesis.tex").read_text() == "mine"
    assert command(config, "list")["total_bytes"] == 0


def test_a_folder_that_cannot_be_used_is_named_by_the_commands(
    tmp_path: Path, model: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input/output error is the folder's, not an error of keepwarm's own."""
    files = opened(tmp_path / "kv")
    kept(files, model)
    files.close(keep=True)
    real = os.scandir

    def failing(path: str | Path) -> Any:
        if str(path) == str(tmp_path / "kv"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    for command_name in ("list", "clear"):
        args = ["--config", str(config), "kv", command_name, "--json"]
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 2, done.output
        assert json.loads(done.stdout)["error"]["error"] == "ConfigError"
        assert str(tmp_path / "kv") in done.stderr


def test_an_engine_s_folder_is_as_private_as_its_parent(tmp_path: Path, model: Path) -> None:
    """The marker is 0600, folders are 0700, whatever the umask."""
    before = os.umask(0)
    try:
        files = opened(tmp_path / "kv")
        engine_folder = kept(files, model)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (files.folder, engine_folder.folder)]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((files.folder / MARKER).stat().st_mode) == 0o600
    files.close()
