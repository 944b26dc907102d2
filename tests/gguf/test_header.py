"""What a header says: metadata, tensors, quantization, shape, and the cost of reading it."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from backends.gguf import SkimmedArray, read_header
from backends.gguf.header_limits import MAX_TEXTS
from backends.gguf.quantization import FILE_TYPES
from backends.gguf.source import WINDOW_BYTES
from backends.gguf.table import TYPE_NUMBERS
from backends.gguf.walk import walk_strings
from backends.llama.binaries import find_binary
from budget.errors import BadModelFile
from budget.memory.shape import GGML_TYPES, row_bytes
from tests.gguf import raw


def _written(path: Path, keys: list[raw.Key], tensors: list[raw.Tensor]) -> Path:
    path.write_bytes(raw.build(keys, tensors).data)
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small llama file."""
    return _written(tmp_path / "small.gguf", raw.llama_keys(), raw.llama_tensors())


def test_metadata_tensors_and_counts_are_those_of_the_file(llama: Path) -> None:
    """Every kind of value comes back, and tokenizer arrays are only located."""
    header = read_header(llama)
    assert header.architecture == "llama"
    assert header.name == "na\u00efve"
    assert header.metadata["general.tags"] == ("one", "two")
    assert header.metadata["some.bytes"] == tuple(range(9))
    assert header.metadata["some.double"] == 0.5
    assert header.metadata["some.big"] == 1 << 40
    assert header.metadata["llama.attention.causal"] is True
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, SkimmedArray)
    assert (tokens.element_type, tokens.count) == ("string", 24)
    assert header.chat_template == "{{ messages }}"
    assert header.file_bytes == llama.stat().st_size
    assert [t.name for t in header.tensors][:2] == ["token_embd.weight", "blk.0.attn_norm.weight"]
    assert header.parameters == 64 * 24 + 2 * (64 + 64 * 64 + 64 * 128) + 64
    assert header.tensors[0].offset % 32 == 0
    last = header.tensors[-1]
    assert last.offset + last.n_bytes <= header.file_bytes


def test_shape_has_a_number_for_each_layer(llama: Path) -> None:
    """Arrays are kept per layer; single numbers are repeated; absent ones have their defaults."""
    shape = read_header(llama).shape()
    assert (shape.n_layers, shape.n_embd, shape.n_vocab, shape.context_length) == (2, 64, 24, 4096)
    assert shape.heads == (4, 4)
    assert shape.kv_heads == (2, 1)
    assert shape.n_ff == (128, 96)
    assert shape.head_dim_k == shape.head_dim_v == (16, 16)
    assert shape.tied_embeddings
    assert shape.causal
    assert shape.pooling is None
    assert not shape.is_recurrent
    assert shape.key("rope.freq_base") == 10000.0
    assert shape.weights_bytes == sum(t.n_bytes for t in shape.tensors)
    assert sum(tensor.layer == 1 for tensor in shape.tensors) == 3


def test_gemma3_alternates_five_windowed_layers_with_a_full_one(tmp_path: Path) -> None:
    """llama.cpp's period for the architecture applies where the file names none."""
    keys = [
        raw.Key(b"general.architecture", raw.STRING, b"gemma3"),
        raw.Key(b"gemma3.block_count", raw.U32, 7),
        raw.Key(b"gemma3.embedding_length", raw.U32, 64),
        raw.Key(b"gemma3.attention.head_count", raw.U32, 4),
        raw.Key(b"gemma3.attention.key_length", raw.U32, 32),
        raw.Key(b"gemma3.attention.sliding_window", raw.U32, 1024),
    ]
    shape = read_header(_written(tmp_path / "g.gguf", keys, [])).shape()
    assert shape.sliding_window == 1024
    assert shape.window_layers == (True, True, True, True, True, False, True)
    assert shape.head_dim_k == (32,) * 7
    assert shape.head_dim_v == (16,) * 7


def test_a_window_that_llama_cpp_ignores_is_ignored(llama: Path, tmp_path: Path) -> None:
    """A llama file with a sliding window key still gets a full KV cache from llama.cpp."""
    keys = [*raw.llama_keys(), raw.Key(b"llama.attention.sliding_window", raw.U32, 512)]
    shape = read_header(_written(tmp_path / "w.gguf", keys, raw.llama_tensors())).shape()
    assert shape.sliding_window == 0
    assert not any(shape.window_layers)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"llama.block_count", 100_000),
        (b"llama.block_count", 0),
        (b"llama.embedding_length", 0),
        (b"llama.attention.head_count", 0xFFFFFFFF),
    ],
)
def test_impossible_hyperparameters_are_refused_with_their_offset(
    tmp_path: Path, key: bytes, value: int
) -> None:
    """A number that no model has is named with its place, and nothing is allocated by it."""
    keys = [k for k in raw.llama_keys() if k.name != key]
    path = _written(tmp_path / "x.gguf", [*keys, raw.Key(key, raw.U32, value)], [])
    with pytest.raises(BadModelFile) as caught:
        read_header(path).shape()
    assert caught.value.facts["check"] == "shape"
    offset = caught.value.facts["offset"]
    assert isinstance(offset, int)
    assert path.read_bytes()[offset : offset + 8] == struct.pack("<II", raw.U32, value)


def test_the_quantization_is_read_from_the_tensors_not_from_name_or_key(tmp_path: Path) -> None:
    """A file that calls itself Q8_0 and holds Q4_K and Q6_K is a Q4_K_M."""
    tensors = [raw.Tensor(b"token_embd.weight", (256, 24), 14, 24 * 210)]
    for i, down in enumerate((14, 12)):
        block = f"blk.{i}.".encode()
        tensors.append(raw.Tensor(block + b"ffn_up.weight", (256, 256), 12, 256 * 144))
        size = 210 if down == 14 else 144
        tensors.append(raw.Tensor(block + b"ffn_down.weight", (256, 256), down, 256 * size))
        tensors.append(raw.Tensor(block + b"attn_norm.weight", (256,), 0, 1024))
    header = read_header(_written(tmp_path / "model-Q8_0.gguf", raw.llama_keys(), tensors))
    assert header.file_type == "Q8_0"
    assert header.quantization == "Q4_K_M"
    assert header.min_bits_per_weight == 4.5
    assert header.weights_by_type == {"Q4_K": 3 * 65536, "Q6_K": 65536 + 24 * 256, "F32": 512}


def test_an_evaluator_floor_sees_the_coarsest_matrix(llama: Path) -> None:
    """Q8_0 and F16 matrices with F32 vectors have 8.5 bits at least."""
    assert read_header(llama).min_bits_per_weight == 8.5


def test_the_tables_are_those_of_the_gguf_package() -> None:
    """Type numbers, block sizes and file types are not our invention; the package may lag behind."""
    for kind, sizes in GGML_QUANT_SIZES.items():
        assert TYPE_NUMBERS[GGMLQuantizationType(kind).value] == kind.name
        if kind.name != "Q8_1":  # 40 bytes there; ggml itself, asked below, has 36
            assert GGML_TYPES[kind.name] == sizes
    for file_type in LlamaFileType:
        if file_type is not LlamaFileType.GUESSED:
            name = file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            assert FILE_TYPES[file_type.value] == name
    assert set(TYPE_NUMBERS.values()) == set(GGML_TYPES)
    assert row_bytes("Q8_0", 65) == 3 * 34


@pytest.mark.real
def test_block_sizes_are_those_of_the_installed_ggml() -> None:
    """The library that allocates the bytes has the last word."""
    library = find_binary("llama-server").parent.parent / "lib" / "libggml-base.so"
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    found = {
        name: (ggml.ggml_blck_size(n), ggml.ggml_type_size(n)) for n, name in TYPE_NUMBERS.items()
    }
    assert found == dict(GGML_TYPES)


def test_the_gguf_package_reads_the_same(tmp_path: Path) -> None:
    """Tensors, offsets and bytes agree with the reference reader on a file of its writer."""
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_custom_alignment(128)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 64), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(65, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = [(t.name, t.dims, t.n_bytes, t.offset) for t in read_header(path).tensors]
    theirs = [
        (t.name, tuple(int(d) for d in t.shape), int(t.n_bytes), int(t.data_offset))
        for t in gguf.GGUFReader(path).tensors
    ]
    assert ours == theirs


def test_a_large_vocabulary_costs_no_object_per_entry(tmp_path: Path) -> None:
    """262,144 tokens and as many merges are stepped over within 1 MiB of Python memory."""
    words = tuple(f"token{i}".encode() * (1 + i % 3) for i in range(262_144))
    keys = [k for k in raw.llama_keys() if not k.name.startswith(b"tokenizer")]
    keys += [
        raw.Key(b"tokenizer.ggml.tokens", raw.ARRAY, words, raw.STRING),
        raw.Key(b"tokenizer.ggml.merges", raw.ARRAY, words, raw.STRING),
    ]
    path = _written(tmp_path / "vocabulary.gguf", keys, [])
    tracemalloc.start()
    try:
        header = read_header(path)
        numpy_chunks = 8 << 20
        assert tracemalloc.get_traced_memory()[1] < numpy_chunks
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert header.shape().n_vocab == 262_144


def test_reading_a_header_does_not_import_the_gguf_package() -> None:
    """That import takes a quarter of a second and more; a command that inspects has no use for it."""
    code = (
        "import sys, backends.gguf; sys.exit('gguf' in sys.modules or 'llama_cpp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _plain_walk(blob: bytes, count: int) -> tuple[int, int]:
    position = walked = 0
    while walked < count and position + 8 <= len(blob):
        position += 8 + int.from_bytes(blob[position : position + 8], "little")
        walked += 1
    return position, walked


@pytest.mark.parametrize("long_at", [0, 1500, 2999])
def test_the_chunked_walk_ends_where_the_plain_one_does(long_at: int) -> None:
    """Empty, long and zero-filled texts break the fast chain and are still stepped over right."""
    texts = [b"word%d" % i for i in range(3000)]
    texts[long_at] = b"x" * 70_000
    texts[long_at - 1] = b""
    texts[long_at - 2] = bytes(40)
    blob = b"".join(struct.pack("<Q", len(t)) + t for t in texts)
    for given, count in ((blob + b"tail", 3000), (blob[:-1], 3000), (blob, 3001), (blob, 1)):
        assert walk_strings(memoryview(given), count) == _plain_walk(given, count)
    assert walk_strings(memoryview(blob), 3000) == (len(blob), 3000)


def test_texts_across_all_windows_are_stepped_over_right(tmp_path: Path) -> None:
    """Short, empty, long and giant ones, wherever a window ends."""
    rng = Random(7)
    lengths = [0, 3, 9, 9, 255, 256, 5000, WINDOW_BYTES - 8, WINDOW_BYTES, 3 * WINDOW_BYTES]
    words = tuple(
        bytes(rng.choices(b"\0ab", k=rng.choices(lengths, [900] * 6 + [9, 1, 1, 1])[0]))
        for _ in range(9000)
    )
    keys = [raw.Key(b"tokenizer.ggml.merges", raw.ARRAY, words, raw.STRING), *raw.llama_keys()]
    header = read_header(_written(tmp_path / "windows.gguf", keys, raw.llama_tensors()))
    merges = header.metadata["tokenizer.ggml.merges"]
    assert isinstance(merges, SkimmedArray)
    assert (merges.count, merges.n_bytes) == (9000, sum(8 + len(word) for word in words))
    assert header.shape().n_vocab == 24


def test_identity_survives_a_rename_and_notices_a_change(llama: Path) -> None:
    """Caches keyed by it follow the content, not the path."""
    before = read_header(llama).identity
    moved = llama.rename(llama.with_name("moved.gguf"))
    assert read_header(moved).identity == before
    os.utime(moved, ns=(0, 1))
    assert read_header(moved).identity != before


def test_a_file_of_nothing_but_texts_is_refused_at_once(tmp_path: Path) -> None:
    """A sparse giant that claims a text for every eight of its bytes is not walked."""
    out = raw.Layout(bytearray(b"GGUF"))
    out.put("I", 3, "version")
    out.put("Q", 0, "count")
    out.put("Q", 1, "count")
    out.text(b"tokenizer.ggml.tokens")
    out.put("I", raw.ARRAY, "type")
    out.put("I", raw.STRING, "type")
    out.put("Q", MAX_TEXTS + 1, "length")
    path = tmp_path / "giant.gguf"
    path.write_bytes(out.data)
    os.truncate(path, 1 << 40)
    with pytest.raises(BadModelFile, match="texts"):
        read_header(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, Path.touch, lambda path: None])
def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path, make: object) -> None:
    """A folder, a pipe, an empty file and a missing one."""
    path = tmp_path / "strange.gguf"
    assert callable(make)
    make(path)
    with pytest.raises(BadModelFile) as caught:
        read_header(path)
    assert caught.value.facts["check"] == "file"


def _shards(folder: Path, *, numbers: tuple[int, ...] = (0, 1), total: int = 8) -> Path:
    tensors = raw.llama_tensors()
    parts = (tensors[:5], tensors[5:])
    for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
        keys = raw.llama_keys() if i == 0 else []
        keys = [
            *keys,
            raw.Key(b"split.no", raw.U32, number),
            raw.Key(b"split.count", raw.U32, 2),
            raw.Key(b"split.tensors.count", raw.I32, total),
        ]
        _written(folder / f"big-{i + 1:05}-of-00002.gguf", keys, part)
    return folder / "big-00001-of-00002.gguf"


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    """All files, all tensors, and each tensor's own file."""
    first = _shards(tmp_path)
    header = read_header(first)
    assert [path.name for path in header.files] == [
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
    ]
    assert header.file_bytes == sum(path.stat().st_size for path in header.files)
    assert [t.name for t in header.tensors] == [t.name.decode() for t in raw.llama_tensors()]
    assert [t.shard for t in header.tensors] == [0] * 5 + [1] * 3


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """A missing, misnumbered, misnamed or miscounted shard, and opening by the second."""
    second = _shards(tmp_path).with_name("big-00002-of-00002.gguf")
    with pytest.raises(BadModelFile, match="opened by its first"):
        read_header(second)
    with pytest.raises(BadModelFile, match="where shard 2"):
        read_header(_shards(tmp_path, numbers=(0, 0)))
    with pytest.raises(BadModelFile, match=r"split\.tensors\.count"):
        read_header(_shards(tmp_path, total=9))
    renamed = tmp_path / "other.gguf"
    _shards(tmp_path).rename(renamed)
    with pytest.raises(BadModelFile, match="its name does not say so"):
        read_header(renamed)
    first = _shards(tmp_path)
    second.unlink()
    with pytest.raises(BadModelFile, match="00002-of-00002"):
        read_header(first)


def test_a_projector_is_not_mistaken_for_a_model(tmp_path: Path) -> None:
    """Its tensors can be read, and asking for its shape says what it may be."""
    keys = [replace(raw.llama_keys()[0], value=b"clip")]
    header = read_header(_written(tmp_path / "mmproj.gguf", keys, raw.llama_tensors()))
    assert len(header.tensors) == 8
    with pytest.raises(BadModelFile, match="projector"):
        header.shape()


def test_a_truncated_download_names_the_first_tensor_that_is_cut(llama: Path) -> None:
    """The file is refused before anything is started for it."""
    os.truncate(llama, llama.stat().st_size - 300)
    with pytest.raises(BadModelFile, match=r"blk\.1\.ffn_up") as caught:
        read_header(llama)
    assert caught.value.facts["check"] == "tensor_bounds"
    assert "fetch it again" in caught.value.hint
