"""Saved state on disk: private, checked, within its budget, one keeper at a time."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from budget.eviction.kv_store import KvFigures, Rate
from shim.keeper.kv.engine_folder import WARM, EngineFolder, read_tokens, slot_file
from shim.keeper.kv.saved_files import KvFiles

KEY = "0123456789abcdef01234567"


def opened(folder: Path, limit_bytes: int = 10_000, max_age_s: float = 60.0) -> KvFiles:
    """The folder, taken."""
    files = KvFiles.open(folder, limit_bytes, max_age_s)
    assert files is not None
    return files


def engine_folder_with(files: KvFiles, origin: Path, names: tuple[str, ...]) -> EngineFolder:
    """The folder of an engine made of one file, with saved files of 1,000 bytes."""
    found = origin.stat()
    stamp = [[str(origin), found.st_size, found.st_mtime_ns]]
    engine_folder = files.engine_folder(KEY, {"stamp": stamp, "models": ["a", "b"]})
    for name in names:
        (engine_folder.folder / name).write_bytes(bytes(1000))
        engine_folder.add(name)
    engine_folder.seal()
    return engine_folder


def model(tmp_path: Path) -> Path:
    """Something that stands for a model's file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_a_folder_is_private_and_used_by_one_keeper(tmp_path: Path) -> None:
    """Mode 0700 for folders; a second keeper carries nothing over until the first has ended."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM,))
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert engine_folder.folder.stat().st_mode & 0o777 == 0o700
    assert (engine_folder.folder / "index.json").stat().st_mode & 0o777 == 0o600
    assert KvFiles.open(tmp_path / "kv", 1) is None
    files.close()
    opened(tmp_path / "kv").close()


def test_conversations_end_with_a_killed_keeper_and_warm_prompts_stay(tmp_path: Path) -> None:
    """The next one sweeps: they may be why. Figures stay, too."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM, slot_file(0)))
    engine_folder.figures = KvFigures(Rate(10, 0.5), reuse=0.5)
    engine_folder.seal()
    assert files._lock is not None
    files._lock.release()  # as the kernel does for a killed keeper
    after = opened(tmp_path / "kv")
    kept = after.engine_folder(KEY, {})
    assert list(kept.states) == [WARM]
    assert kept.figures == engine_folder.figures
    assert not (kept.folder / slot_file(0)).exists()
    after.close()
    assert (kept.folder / WARM).exists()


def test_conversations_outlive_a_keeper_that_ends_in_good_order(tmp_path: Path) -> None:
    """Sealed, and found with their tokens' file; one that is cut meanwhile is not taken over."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM, slot_file(0), slot_file(1)))
    (engine_folder.folder / "yield-r1.kv").write_bytes(bytes(10))
    engine_folder.add("yield-r1.kv")
    engine_folder.states[slot_file(1)].checksum = None
    assert files.close(keep=True) == (2, 2000)
    (engine_folder.folder / slot_file(0)).write_bytes(bytes(10))
    after = opened(tmp_path / "kv")
    kept = after.engine_folder(KEY, {})
    assert set(kept.states) == {WARM, slot_file(1)}
    assert sorted(p.name for p in kept.folder.glob("*.kv")) == [slot_file(1), WARM]
    kept.check()
    assert set(kept.states) == {WARM, slot_file(1)}
    assert after.close() == (0, 0)
    assert [p.name for p in kept.folder.glob("*.kv")] == [WARM]


def test_old_conversations_are_deleted(tmp_path: Path) -> None:
    """While the keeper runs and when it starts; with no age at all, none stays after it."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM, slot_file(0), slot_file(1)))
    engine_folder.states[slot_file(0)].used_at -= 61
    files.expire()
    assert set(engine_folder.states) == {WARM, slot_file(1)}
    engine_folder.states[slot_file(1)].used_at -= 30
    assert files.close(keep=True) == (1, 1000)
    assert opened(tmp_path / "kv", max_age_s=20).of("a")[0].conversations == {}
    brief = opened(tmp_path / "other", max_age_s=0)
    engine_folder_with(brief, model(tmp_path), (slot_file(0),))
    assert brief.close(keep=True) == (0, 0)


def test_what_is_kept_is_listed_and_cleared_by_model(tmp_path: Path) -> None:
    """Bytes, conversations and age by engine; a model without saved state clears nothing."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM, slot_file(0), slot_file(1)))
    engine_folder.states[slot_file(1)].used_at -= 30
    (row,) = files.rows()
    assert row["models"] == ["a", "b"]
    assert (row["conversations"], row["bytes"], row["warm_prompt_bytes"]) == (2, 2000, 1000)
    assert 0 <= row["used_s"] < 30
    assert files.clear("c") == (0, 0)
    assert files.clear("b") == (3, 3000)
    assert files.rows() == []
    assert list(engine_folder.folder.glob("*.kv")) == []


def test_nothing_is_kept_of_a_model_whose_file_changed(tmp_path: Path) -> None:
    """Its state is of other weights."""
    files = opened(tmp_path / "kv")
    path = model(tmp_path)
    folder = engine_folder_with(files, path, (WARM,)).folder
    files.close()
    path.write_bytes(b"GGUF, another one")
    opened(tmp_path / "kv").close()
    assert not folder.exists()


def test_a_damaged_index_is_as_none(tmp_path: Path) -> None:
    """It is set aside for a month, its files go, and everything is evaluated anew."""
    files = opened(tmp_path / "kv")
    folder = engine_folder_with(files, model(tmp_path), (WARM,)).folder
    files.close()
    (folder / "index.json").write_text('{"format": 1')
    opened(tmp_path / "kv").close()
    assert [path.name for path in folder.iterdir()] == ["index.json.damaged"]
    engine_folder = engine_folder_with(opened(tmp_path / "kv"), model(tmp_path), (WARM,))
    assert list(engine_folder.states) == [WARM]


def test_a_flipped_bit_a_cut_and_a_missing_file_are_seen(tmp_path: Path) -> None:
    """A file that is not what was saved is deleted, never restored."""
    files = opened(tmp_path / "kv")
    names = tuple(slot_file(slot) for slot in range(4))
    engine_folder = engine_folder_with(files, model(tmp_path), names)
    (engine_folder.folder / names[0]).write_bytes(bytes(500) + b"\1" + bytes(499))
    (engine_folder.folder / names[1]).write_bytes(bytes(999))
    (engine_folder.folder / names[2]).unlink()
    engine_folder.check()
    assert list(engine_folder.states) == [names[3]]
    assert [p.name for p in engine_folder.folder.glob("*.kv")] == [names[3]]


def test_folders_that_somebody_deleted_are_made_again(tmp_path: Path) -> None:
    """Engines do not start without theirs; what was in it is seen to be missing."""
    files = opened(tmp_path / "kv")
    engine_folder = engine_folder_with(files, model(tmp_path), (slot_file(0),))
    shutil.rmtree(files.folder)
    again = files.engine_folder(KEY, {})
    assert again is engine_folder
    assert [f.stat().st_mode & 0o777 for f in (files.folder, engine_folder.folder)] == [
        0o700,
        0o700,
    ]
    engine_folder.check()
    assert not engine_folder.states
    assert files.total_bytes == 0
    files.close()


def test_the_budget_holds_over_all_engines(tmp_path: Path) -> None:
    """What was of no use for longest goes first, also when the budget became smaller."""
    files = opened(tmp_path / "kv", 3000)
    engine_folder = engine_folder_with(files, model(tmp_path), (WARM, slot_file(0), slot_file(1)))
    for age, name in enumerate((slot_file(1), WARM, slot_file(0))):
        engine_folder.states[name].used_at = float(age)
    files.make_room(1000)
    assert set(engine_folder.states) == {WARM, slot_file(0)}
    files.limit_bytes = 1500
    files.make_room()
    assert set(engine_folder.states) == {slot_file(0)}
    assert files.total_bytes == 1000


def test_the_tokens_of_a_saved_file_are_read_from_its_header(tmp_path: Path) -> None:
    """As llama-server packs them, and as older versions wrote them; anything else has none."""
    path = tmp_path / "x.kv"

    def write(words: list[int]) -> None:
        path.write_bytes(b"qsgg" + struct.pack(f"<II{len(words)}I", 2, len(words), *words) + b"KV")

    write([0xFFFFFFFF, 1, 3, 10, 11, 12, 0])
    assert read_tokens(path) == (10, 11, 12)
    write([10, 11, 12])
    assert read_tokens(path) == (10, 11, 12)
    for content in (b"", b"qsgg", b"GGUF" + bytes(100), b"qsgg" + struct.pack("<II", 2, 99)):
        path.write_bytes(content)
        assert read_tokens(path) == ()
