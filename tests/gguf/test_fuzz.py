"""Headers from strangers: whatever is in them, they are read or refused, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import get_args

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from backends.gguf import Check, read_header
from backends.llama.binaries import find_binary
from budget.errors import BadModelFile
from tests.gguf import raw

# The checks that come before the metadata; a useful fuzz gets past them.
_EARLY = frozenset({"file", "magic", "version", "endianness", "tensor_count", "metadata_count"})
_CASES = 2200
_EDGES = [0, 1, 3, 7, 8, 9, 31, 33, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 32]
_EDGES += [(1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]


def _mutate_spec(rng: Random, keys: list[raw.Key], tensors: list[raw.Tensor]) -> None:
    """Say something else than the truth, in a file that is otherwise well-formed."""
    key, tensor = rng.randrange(len(keys)), rng.randrange(len(tensors))
    edge = rng.choice(_EDGES)
    match rng.randrange(12):
        case 0:
            keys.append(keys[key])
        case 1:
            tensors.append(tensors[tensor])
        case 2:
            keys[key] = replace(keys[key], name=rng.choice([b"", b"\xff\xfe", b"k" * 99]))
        case 3:
            keys[key] = raw.Key(keys[key].name, raw.STRING, b"ab\x80\xff")
        case 4:
            keys[key] = raw.Key(b"nested", raw.ARRAY, (), raw.ARRAY)
        case 5:
            keys[2] = raw.Key(b"general.alignment", raw.U32, edge & 0xFFFFFFFF)
        case 6:
            tensors[tensor] = replace(tensors[tensor], dims=(edge, 64))
        case 7:
            tensors[tensor] = replace(tensors[tensor], dims=(33, *tensors[tensor].dims[1:]))
        case 8:
            name = rng.choice([b"", b"n" * 64, b"\xc3("])
            tensors[tensor] = replace(tensors[tensor], name=name)
        case 9:
            tensors[tensor] = replace(tensors[tensor], offset=edge)
        case 10:
            del keys[key]
        case _:
            keys[key] = raw.Key(keys[key].name, raw.U32, edge & 0xFFFFFFFF)


def _mutate_field(rng: Random, layout: raw.Layout) -> None:
    """Overwrite a length, type, count, dimension, offset or value with a number at an edge."""
    choices = [entry for entry in layout.fields if entry[0] >= 24]
    kind = rng.choice(sorted({kind for _, _, kind in choices}))
    offset, size, _ = rng.choice([entry for entry in choices if entry[2] == kind])
    value = rng.choice(_EDGES) if rng.random() < 0.7 else rng.randrange(64)
    layout.data[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _mutate_start(rng: Random, data: bytearray) -> None:
    """Damage the magic number, the version or a count."""
    start, size = rng.choice([(0, 4), (4, 4), (4, 4), (8, 8), (16, 8)])
    new = rng.choice([0, 1, 2, 4, 3 << 24, 0x46554747, rng.choice(_EDGES)])
    data[start : start + size] = (new & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def mutated_header(rng: Random) -> bytes:
    """A well-formed file with one to eight things wrong; most often behind the counts."""
    keys, tensors = raw.llama_keys(), raw.llama_tensors()
    kind = rng.randrange(12)
    if kind < 5:
        _mutate_spec(rng, keys, tensors)
    layout = raw.build(keys, tensors)
    data = layout.data
    if 4 <= kind < 9:
        for _ in range(rng.randint(1, 2)):
            _mutate_field(rng, layout)
    elif kind == 9:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(24, len(data))] = rng.randrange(256)
    elif kind == 10:
        del data[int(len(data) * rng.random() ** 3) + 1 :]
    elif kind == 11:
        _mutate_start(rng, data)
    return bytes(data)


def _outcome(path: Path) -> str:
    """The check that rejected the file, or `accepted`; any other exception is the test's failure."""
    size = path.stat().st_size
    try:
        header = read_header(path)
        header.shape()
        assert header.parameters >= 0
        assert header.quantization
    except BadModelFile as error:
        check, offset = error.facts["check"], error.facts["offset"]
        assert check in get_args(Check)
        assert isinstance(offset, int)
        assert 0 <= offset <= size
        assert error.facts["file"] == str(path)
        assert f"byte {offset}" in error.message
        return str(check)
    return "accepted"


def test_mutated_headers_are_read_or_refused_in_bounded_memory(
    tmp_path: Path, fuzz_cases: Counter[str]
) -> None:
    """No header hangs, crashes or takes much memory; each important check is reached."""
    path = tmp_path / "mutated.gguf"
    file = os.open(path, os.O_RDWR | os.O_CREAT)

    @settings(
        max_examples=_CASES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def run(rng: Random) -> None:
        data = mutated_header(rng)
        os.pwrite(file, data, 0)
        os.ftruncate(file, len(data))
        if fuzz_cases.total() % 4:
            fuzz_cases[_outcome(path)] += 1
            return
        # Tracing makes everything slow, so a quarter of the cases is measured.
        tracemalloc.start()
        try:
            fuzz_cases[_outcome(path)] += 1
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    try:
        run()
    finally:
        os.close(file)
    assert fuzz_cases.total() >= 2000
    late = sum(count for check, count in fuzz_cases.items() if check not in _EARLY)
    assert late >= fuzz_cases.total() / 2
    reachable = set(get_args(Check)) - {"file", "changed", "header_size", "shard"}
    assert reachable <= set(fuzz_cases), f"never reached: {reachable - set(fuzz_cases)}"


_ASK_GGML = """
import ctypes, pathlib, sys
ggml = ctypes.CDLL(sys.argv[1])
class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]
ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
ggml.gguf_init_from_file.restype = ctypes.c_void_p
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.gguf")):
    if not ggml.gguf_init_from_file(str(path).encode(), Params(True, None)):
        print(path.name)
"""


@pytest.mark.real
def test_what_is_accepted_ggml_accepts_too(tmp_path: Path) -> None:
    """A mutated header that passes here is not refused by ggml's own reader later."""
    count = 0

    @settings(
        max_examples=400,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def run(rng: Random) -> None:
        nonlocal count
        path = tmp_path / f"{count}.gguf"
        path.write_bytes(mutated_header(rng))
        if _outcome(path) == "accepted":
            count += 1
        else:
            path.unlink()

    run()
    assert count > 30
    libraries = find_binary("llama-server").parent.parent / "lib"
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_GGML, str(libraries / "libggml-base.so"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert asked.stdout == ""
