"""Model files as people have them: joined, cut, renamed, linked, of other programs, in old encodings."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.footprint.dry_run import measure
from backends.gguf import read_header
from backends.llama.binaries import find_binary, library_env
from backends.llama.model_files import file_sizes
from budget.errors import BadModelFile
from budget.footprint import EngineArgs
from tests.gguf import raw


def _written(path: Path, keys: list[raw.Key], tensors: list[raw.Tensor]) -> Path:
    path.write_bytes(raw.build(keys, tensors).data)
    return path


def _shards(folder: Path) -> list[Path]:
    """A small llama in two files."""
    tensors = raw.llama_tensors()
    paths = []
    for number, part in enumerate((tensors[:5], tensors[5:])):
        split = {b"split.no": number, b"split.count": 2, b"split.tensors.count": len(tensors)}
        keys = [raw.Key(name, raw.U32, value) for name, value in split.items()]
        own = raw.llama_keys() if number == 0 else []
        paths.append(_written(folder / f"big-{number + 1:05}-of-00002.gguf", own + keys, part))
    return paths


def _refused(path: Path) -> BadModelFile:
    with pytest.raises(BadModelFile) as caught:
        read_header(path).shape()
    return caught.value


def test_shards_that_were_joined_by_cat_are_named_as_that(tmp_path: Path) -> None:
    """Under a name of their own and under the first shard's; the hint joins them properly."""
    shards = _shards(tmp_path)
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    as_first = tmp_path / "whole-00001-of-00002.gguf"
    shutil.copy(joined, as_first)
    for path in (joined, as_first):
        error = _refused(path)
        assert "not joined by `cat`" in error.message
        assert "llama-gguf-split --merge" in error.hint


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("m.gguf.part1of2", ".part*"),
        ("m.gguf-split-a", "-split-*"),
        ("m.gguf.aa", ".*"),
        ("m.gguf.001", ".*"),
    ],
)
def test_a_piece_that_was_cut_by_size_is_named_as_that(
    name: str, series: str, tmp_path: Path
) -> None:
    """The first and a later piece; a whole file of such a name is read."""
    whole = bytes(raw.build(raw.llama_keys(), raw.llama_tensors()).data)
    path = tmp_path / name
    for piece in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
        path.write_bytes(piece)
        error = _refused(path)
        assert "a piece of m.gguf" in error.message
        assert f"cat m.gguf{series} > m.gguf" in error.hint
    path.write_bytes(whole)
    assert read_header(path).shape().n_layers == 2


def test_a_whole_file_may_have_the_name_of_a_shard(tmp_path: Path) -> None:
    """Its metadata says that it is whole, and the files of the other names are not asked for."""
    path = _written(tmp_path / "m-00001-of-00003.gguf", raw.llama_keys(), raw.llama_tensors())
    assert read_header(path).files == (path,)
    assert list(file_sizes(path)) == [path]


def test_a_link_to_the_first_shard_is_the_model(tmp_path: Path) -> None:
    """With another name or in another folder: the files beside its target count."""
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    shards = _shards(real)
    for name in ("model.gguf", shards[0].name):
        link = links / name
        link.symlink_to(shards[0])
        assert read_header(link).files == tuple(shards)


def test_links_to_every_shard_are_kept(tmp_path: Path) -> None:
    """As in the Hub's cache, where only the links have the shards' names."""
    blobs, links = tmp_path / "blobs", tmp_path / "links"
    blobs.mkdir()
    links.mkdir()
    linked = []
    for number, shard in enumerate(_shards(tmp_path)):
        blob = shard.rename(blobs / f"{number}abc")
        linked.append(links / shard.name)
        linked[-1].symlink_to(blob)
    assert read_header(linked[0]).files == tuple(linked)


def test_a_missing_shard_is_named_with_its_number(tmp_path: Path) -> None:
    """And with the path where it is due."""
    first, second = _shards(tmp_path)
    second.unlink()
    error = _refused(first)
    assert "shard 2 of 2 is not there" in error.message
    assert error.facts["file"] == str(second)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("v.blk.0.attn_q.weight", "vision tower"),
        ("mm.0.weight", "projector"),
        ("mtp.layers.0.attn_q.weight", "several tokens"),
    ],
)
def test_parts_that_only_ollama_keeps_in_the_file_are_named(
    name: str, what: str, tmp_path: Path
) -> None:
    """llama.cpp says "wrong number of tensors" of such a file."""
    foreign = raw.Tensor(name.encode(), (64, 64), 1, 64 * 64 * 2)
    path = _written(tmp_path / "m.gguf", raw.llama_keys(), [*raw.llama_tensors(), foreign])
    error = _refused(path)
    assert what in error.message
    assert "Ollama" in error.message


def test_values_in_latin_1_are_read(tmp_path: Path) -> None:
    """In a name and in an array; llama.cpp looks at no encoding."""
    keys = [key for key in raw.llama_keys() if key.name not in {b"general.name", b"general.tags"}]
    keys += [
        raw.Key(b"general.name", raw.STRING, b"na\xefve"),
        raw.Key(b"general.tags", raw.ARRAY, (b"caf\xe9", b"two"), raw.STRING),
    ]
    header = read_header(_written(tmp_path / "m.gguf", keys, raw.llama_tensors()))
    assert header.name == "na\xefve"
    assert header.metadata["general.tags"] == ("caf\xe9", "two")


def test_a_key_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Keys are looked up by their names."""
    keys = [*raw.llama_keys(), raw.Key(b"caf\xe9", raw.U32, 1)]
    assert _refused(_written(tmp_path / "m.gguf", keys, [])).facts["check"] == "utf8"


@pytest.mark.parametrize("dims", [(0,), (256, 0), (0, 64)])
def test_a_tensor_without_elements_takes_no_bytes(dims: tuple[int, ...], tmp_path: Path) -> None:
    """It moves no other tensor, and is no coarse matrix of an evaluator."""
    q2_k = 10
    empty = raw.Tensor(b"blk.0.empty.weight", dims, q2_k, 0)
    tensors = [*raw.llama_tensors(), empty, raw.Tensor(b"output.weight", (64, 24), 8, 24 * 68)]
    plain = read_header(
        _written(tmp_path / "plain.gguf", raw.llama_keys(), [*tensors[:-2], tensors[-1]])
    )
    header = read_header(_written(tmp_path / "m.gguf", raw.llama_keys(), tensors))
    assert header.shape().weights_bytes == plain.shape().weights_bytes
    assert header.min_bits_per_weight == plain.min_bits_per_weight


@pytest.mark.real
def test_what_llama_cpp_loads_is_measured(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """A whole file with a shard's name, a link to a first shard, and bytes behind the last tensor."""
    whole = tiny_models["producer"]
    named = tmp_path / "m-00001-of-00003.gguf"
    shutil.copy(whole, named)
    longer = tmp_path / "longer.gguf"
    longer.write_bytes(whole.read_bytes() + b"\0" * 5000)
    link = tmp_path / "link.gguf"
    link.symlink_to(_split(whole, tmp_path / "part")[0])
    args = EngineArgs(n_ctx=256)
    expected = measure(whole, args).devices
    for path in (named, longer, link):
        assert measure(read_header(path).files[0], args).devices == expected


def _split(model: Path, prefix: Path) -> Sequence[Path]:
    """The shards that llama.cpp's own tool makes of a model."""
    tool = find_binary("llama-gguf-split")
    subprocess.run(
        [tool, "--split", "--split-max-tensors", "16", model, prefix],
        env=library_env(tool),
        check=True,
        capture_output=True,
    )
    return sorted(prefix.parent.glob(f"{prefix.name}-*.gguf"))


def test_the_gguf_package_writes_tensors_without_elements(tmp_path: Path) -> None:
    """The reference writer's form of such a tensor is the one that is read."""
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("empty.weight", np.zeros((0, 64), np.float32))
    writer.add_tensor("after.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [(t.name, t.n_bytes) for t in read_header(path).tensors] == [
        ("empty.weight", 0),
        ("after.weight", 32),
    ]
