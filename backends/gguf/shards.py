"""Models in several files: shards beside one another, and what people have made of them.

A shard says in its metadata which one it is. A name alone says nothing: a whole model may have kept the
name of a first shard.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from backends.gguf.checks import reject, shown
from backends.gguf.header_limits import MAX_SHARDS, Allowance
from backends.gguf.source import opened
from backends.gguf.table import MAGIC, FileTable, read_table
from budget.errors import BadModelFile

_NAME: Final = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL | re.ASCII
)
_PIECE: Final = re.compile(
    r"(?P<whole>.+\.gguf)(?P<series>\.part|-split-|\.(?=[a-z]{2}$|\d{2,4}$))\w+",
    re.DOTALL | re.ASCII,
)
"""Names of pieces that were cut by size, as hubs ask for: they are no shards, and have to be joined."""


def read_tables(path: Path) -> tuple[FileTable, ...]:
    """The headers of a model's file, or of all its shards, the first one's first.

    Raises:
        BadModelFile: a file is missing, damaged or impossible, or no first shard.
    """
    allowance = Allowance()
    try:
        first = read_table(path, allowance)
    except BadModelFile as error:
        _explain_piece(path, error)
        raise
    if split_number(first, "split.count", 1) > 1:
        first = _where_the_shards_are(first)
    return (first, *_other_shards(first, allowance))


def split_number(table: FileTable, key: str, default: int) -> int:
    """A count of the split's metadata."""
    value = table.metadata.get(key, default)
    if type(value) is not int or value < 0:
        reject(
            table.path,
            "shard",
            f"{key} is {shown(value)}; a count is allowed.",
            offset=table.key_offsets.get(key, 0),
        )
    return value


def _explain_piece(path: Path, error: BadModelFile) -> None:
    """Raise an error that says more where an unreadable file has the name of a piece."""
    piece = _PIECE.fullmatch(path.name)
    if piece is None or error.facts["check"] == "file":
        return
    whole = piece["whole"]
    reject(
        path,
        "truncated",
        f"this is a piece of {whole}, which was cut by size: a piece is no model.",
        offset=0,
        hint=f"Join all pieces in their order: `cat {whole}{piece['series']}* > {whole}`.",
    )


def _where_the_shards_are(first: FileTable) -> FileTable:
    """The first shard by the name that has siblings: a link's target if there are none beside the link."""
    if not first.path.is_symlink() or _sibling(first.path, 2).exists():
        return first
    target = first.path.resolve()
    return replace(first, path=target) if _NAME.fullmatch(target.name) else first


def _sibling(path: Path, number: int) -> Path:
    named = _NAME.fullmatch(path.name)
    if named is None:
        return path.with_name(f"{path.name}-{number:05}")
    return path.with_name(f"{named['stem']}-{number:05}-of-{named['count']}.gguf")


def _other_shards(first: FileTable, allowance: Allowance) -> tuple[FileTable, ...]:
    count = split_number(first, "split.count", 1)
    number = split_number(first, "split.no", 0)
    if count <= 1:
        return ()
    offset = first.key_offsets.get("split.no", first.key_offsets["split.count"])
    if count > MAX_SHARDS:
        reject(
            first.path,
            "shard",
            f"this is a shard of {count}; a model may have {MAX_SHARDS}.",
            offset=offset,
        )
    if _is_joined(first):
        reject(
            first.path,
            "shard",
            f"this is shard {number + 1} of {count}, and the next one follows in the same file: shards are "
            "not joined by `cat`.",
            offset=first.end,
            hint=f"Fetch the {count} shards into one folder, or join them with "
            "`llama-gguf-split --merge FIRST-SHARD WHOLE.gguf`.",
        )
    named = _NAME.fullmatch(first.path.name)
    if named is None or (int(named["number"]), int(named["count"])) != (number + 1, count):
        reject(
            first.path,
            "shard",
            f"this is shard {number + 1} of {count} and its name does not say so.",
            offset=offset,
            hint=f"Name it NAME-{number + 1:05}-of-{count:05}.gguf.",
        )
    siblings = [_sibling(first.path, i + 1) for i in range(count)]
    if number:
        reject(
            first.path,
            "shard",
            f"this is shard {number + 1} of {count}; a model is opened by its first.",
            offset=offset,
            hint=f"Use {siblings[0]}.",
        )
    return tuple(
        _read_shard(path, allowance, i, count) for i, path in enumerate(siblings[1:], start=1)
    )


def _is_joined(first: FileTable) -> bool:
    """Whether another file begins behind the last tensor."""
    with opened(first.path) as (descriptor, _):
        behind = os.pread(descriptor, first.alignment + len(MAGIC), first.end)
    return MAGIC in behind


def _read_shard(path: Path, allowance: Allowance, index: int, count: int) -> FileTable:
    if not path.exists():
        reject(
            path,
            "shard",
            f"shard {index + 1} of {count} is not there.",
            offset=0,
            hint="Put all shards into one folder.",
        )
    return read_table(path, allowance, shard=index)
