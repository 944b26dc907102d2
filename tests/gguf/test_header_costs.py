"""What a header may cost: bounded by stated numbers, whatever the size of its file."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.gguf import SkimmedArray, read_header
from backends.gguf import header_limits as most
from backends.gguf.header_limits import Allowance
from backends.gguf.table import read_table
from budget.errors import BadModelFile
from tests.gguf import raw

MIB = 1 << 20
PEAK_BYTES = 64 * MIB
"""What `backends.gguf.header_limits` promises."""


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _array(name: bytes, element: int, count: int, body: bytes) -> bytes:
    return _text(name) + struct.pack("<IIQ", raw.ARRAY, element, count) + body


def _value(name: bytes, text: bytes) -> bytes:
    return _text(name) + struct.pack("<I", raw.STRING) + _text(text)


def _tensor(index: int) -> bytes:
    return _text(b"t%d" % index) + struct.pack("<IQIQ", 1, 8, 0, 32 * index)


def _written(
    path: Path, keys: list[bytes], tensors: int = 0, *, claimed: int | None = None
) -> Path:
    """A file of these entries; its tensors' data is a hole."""
    n_keys = len(keys) if claimed is None else claimed
    table = b"".join(map(_tensor, range(tensors)))
    data = b"GGUF" + struct.pack("<IQQ", 3, tensors, n_keys) + b"".join(keys) + table
    path.write_bytes(data)
    os.truncate(path, len(data) + 64 + 32 * tensors)
    return path


def _peak_bytes(path: Path) -> tuple[int, str]:
    """The most memory that reading takes, and the check that refused the file, if one did."""
    tracemalloc.start()
    try:
        read_header(path)
    except BadModelFile as error:
        assert len(str(error)) < 1000
        return tracemalloc.get_traced_memory()[1], str(error.facts["check"])
    else:
        return tracemalloc.get_traced_memory()[1], "accepted"
    finally:
        tracemalloc.stop()


def _numbers(arrays: int) -> list[bytes]:
    body = struct.pack("<1024d", *(i / 7 for i in range(1024)))
    return [_array(b"n%d" % i, raw.F64, 1024, body) for i in range(arrays)]


def _names(arrays: int) -> list[bytes]:
    body = b"".join(_text(b"%d" % i) for i in range(256))
    return [_array(b"n%d" % i, raw.STRING, 256, body) for i in range(arrays)]


def _keys(count: int) -> list[bytes]:
    return [_value(b"key%d" % i, b"v") for i in range(count)]


def _wide(count: int) -> list[bytes]:
    """Texts whose one character takes four bytes for each of the others, once they are read."""
    return [_value(b"k%d" % i, "\U0001f600".encode() + b"a" * (MIB - 16)) for i in range(count)]


def _tokens(count: int, text: bytes) -> list[bytes]:
    return [_array(b"tokenizer.ggml.tokens", raw.STRING, count, _text(text) * count)]


HOSTILE: dict[str, tuple[Callable[[], list[bytes]], int, str]] = {
    "as many numbers as may be": (lambda: _numbers(64), 0, "accepted"),
    "more numbers": (lambda: _numbers(65), 0, "array_length"),
    "as many short texts as may be": (lambda: _names(256), 0, "accepted"),
    "more short texts": (lambda: _names(257), 0, "array_length"),
    "as many keys as may be": (lambda: _keys(most.MAX_KEYS), 0, "accepted"),
    "more keys": (lambda: _keys(most.MAX_KEYS + 1), 0, "metadata_count"),
    "as many tensors as may be": (list, most.MAX_TENSORS, "accepted"),
    "more tensors": (list, most.MAX_TENSORS + 1, "tensor_count"),
    "as much text as may be": (lambda: _wide(7), 0, "accepted"),
    "more text": (lambda: _wide(9), 0, "string_length"),
    "a key of a megabyte": (lambda: [_value(b"k" * MIB, b"v")], 0, "string_length"),
    "as many tokens as may be": (lambda: _tokens(most.MAX_TEXTS, b"t"), 0, "accepted"),
    "more tokens": (lambda: _tokens(most.MAX_TEXTS + 1, b""), 0, "array_length"),
    "tokens that break every stride": (lambda: _tokens(60_000, b"t" * 256), 0, "accepted"),
    "nothing but zeros": (lambda: _tokens(100_000, b""), 0, "accepted"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_costs_no_more_than_is_stated(tmp_path: Path, case: str) -> None:
    """Up to each bound it is read, one above it is refused; the memory holds in both cases."""
    keys, tensors, expected = HOSTILE[case]
    peak, check = _peak_bytes(_written(tmp_path / "hostile.gguf", keys(), tensors))
    assert check == expected
    assert peak < PEAK_BYTES


def test_the_memory_holds_for_the_whole_process(tmp_path: Path) -> None:
    """With every bound reached at once, and no more address space than is stated."""
    keys = [*_numbers(60), *_wide(7), *_keys(4000), *_tokens(400_000, b"token")]
    path = _written(tmp_path / "hostile.gguf", keys, most.MAX_TENSORS)
    code = f"""
import resource, sys
from pathlib import Path
from backends.gguf import read_header
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + {PEAK_BYTES}
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(len(read_header(sys.argv[1]).tensors))
"""
    run = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(most.MAX_TENSORS), done.stderr[-2000:]


def test_a_header_that_goes_on_for_ever_is_refused(tmp_path: Path) -> None:
    """Arrays that are stepped over are not read, and count all the same."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    before = len(start + _array(b"a", raw.U64, 0, b""))
    path = tmp_path / "endless.gguf"
    path.write_bytes(start + _array(b"a", raw.U64, (most.MAX_HEADER_BYTES - before) // 8, b""))
    os.truncate(path, 1 << 40)
    peak, check = _peak_bytes(path)
    assert check == "header_size"
    assert peak < 2 * MIB


def test_the_files_of_a_model_share_what_is_allowed(tmp_path: Path) -> None:
    """Many small shards are no way around the bounds."""

    def split(number: int) -> list[bytes]:
        pairs = {b"split.no": number, b"split.count": 2}
        return [_text(name) + struct.pack("<II", raw.U32, n) for name, n in pairs.items()]

    first = _written(tmp_path / "m-00001-of-00002.gguf", split(0), most.MAX_TENSORS - 1)
    _written(tmp_path / "m-00002-of-00002.gguf", split(1), 2)
    with pytest.raises(BadModelFile, match=f"may have {most.MAX_TENSORS}") as caught:
        read_header(first)
    assert caught.value.facts["check"] == "tensor_count"


def test_a_claim_of_countless_shards_is_refused(tmp_path: Path) -> None:
    """No list of their names is made."""
    pairs = {b"split.no": 0, b"split.count": 99_999}
    keys = [_text(name) + struct.pack("<II", raw.U32, n) for name, n in pairs.items()]
    path = _written(tmp_path / "m-00001-of-99999.gguf", keys)
    with pytest.raises(BadModelFile, match=f"may have {most.MAX_SHARDS}"):
        read_header(path)


def test_the_largest_real_vocabularies_take_less_than_half(tmp_path: Path) -> None:
    """300,000 tokens, 600,000 merges, scores and types, a chat template of 100 KB, 2,000 tensors."""
    words = b"".join(_text(b"token%d" % (i % 1000)) for i in range(300_000))
    keys = [
        _value(b"general.architecture", b"llama"),
        _value(b"tokenizer.chat_template", b"{" * 100_000),
        _array(b"tokenizer.ggml.tokens", raw.STRING, 300_000, words),
        _array(b"tokenizer.ggml.merges", raw.STRING, 600_000, words + words),
        _array(b"tokenizer.ggml.scores", raw.F32, 300_000, bytes(1_200_000)),
        _array(b"tokenizer.ggml.token_type", raw.I32, 300_000, bytes(1_200_000)),
    ]
    left = Allowance()
    table = read_table(_written(tmp_path / "real.gguf", keys, 2000), left)
    assert len(table.tensors) == 2000
    whole = Allowance()
    for name in Allowance.__dataclass_fields__:
        assert getattr(left, name) > getattr(whole, name) / 2, name


def test_a_whole_tokenizer_in_one_text_is_stepped_over(tmp_path: Path) -> None:
    """Some converters keep `tokenizer.json`, 20 MB and more; the model loads all the same."""
    key = b"tokenizer.huggingface.json"
    keys = [_value(key, b"x" * (20 * MIB)), _value(b"general.architecture", b"llama")]
    path = _written(tmp_path / "whole.gguf", keys, 1)
    peak, check = _peak_bytes(path)
    assert (check, peak < 2 * MIB) == ("accepted", True)
    header = read_header(path)
    assert header.architecture == "llama"
    skimmed = header.metadata[key.decode()]
    assert isinstance(skimmed, SkimmedArray)
    assert (skimmed.element_type, skimmed.count) == ("u8", 20 * MIB)


def test_a_value_of_a_megabyte_does_not_fill_the_error(tmp_path: Path) -> None:
    """What is quoted of a file is cut."""
    keys = [
        _value(b"general.architecture", b"llama"),
        _value(b"llama.block_count", b"x" * (MIB - 1)),
    ]
    header = read_header(_written(tmp_path / "loud.gguf", keys))
    with pytest.raises(BadModelFile, match="whole number") as caught:
        header.shape()
    assert len(str(caught.value)) < 1000


LONG = {
    "a text": _text(b"k") + struct.pack("<IQ", raw.STRING, 300_000_000),
    "an array": _text(b"k") + struct.pack("<IIQ", raw.ARRAY, raw.F64, 40_000_000),
}


@pytest.mark.parametrize("entry", LONG.values(), ids=LONG)
@pytest.mark.parametrize("whole", [True, False])
def test_a_claim_beyond_what_is_read_names_the_bound_and_one_beyond_the_file_the_file(
    tmp_path: Path, entry: bytes, *, whole: bool
) -> None:
    """A whole file is not to be fetched again: it would be the same."""
    path = _written(tmp_path / "m.gguf", [entry])
    cut = path.stat().st_size
    if whole:
        os.truncate(path, cut + 320_000_000)
    with pytest.raises(BadModelFile) as caught:
        read_header(path)
    position = cut - 64
    if whole:
        left = most.MAX_HEADER_BYTES - position
        assert f"{left} bytes are left of the {most.MAX_HEADER_BYTES} that" in caught.value.message
        assert "Fetch" not in caught.value.hint
    else:
        assert "64 bytes of the file are left" in caught.value.message
        assert "Fetch" in caught.value.hint
