"""What `keepwarm ps` says beside a device's books."""

from __future__ import annotations

import pytest

from shim.cli.commands.ps import command as ps
from shim.cli.commands.ps.command import print_projects

BOOKS = {
    "device": "host",
    "limit_bytes": 2048,
    "ceiling_bytes": 2048,
    "reserved_bytes": 0,
    "protected_bytes": 0,
    "evictable_bytes": 0,
    "free_bytes": 2048,
    "over_limit": False,
    "low_memory": False,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"ceiling_bytes": 1024}, "other programs leave 1.00 KiB"),
        ({"over_limit": True, "ceiling_bytes": 1024}, "OVER ITS LIMIT: nothing is admitted"),
        ({"low_memory": True}, "LOW MEMORY: less is free than the reserve"),
        (
            {"low_memory": True, "ceiling_bytes": 1024},
            "other programs leave 1.00 KiB; LOW MEMORY: less is free than the reserve",
        ),
    ],
)
def test_a_device_in_trouble_says_so(
    change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over its limit, pressed by other programs, below its reserve; otherwise nothing."""
    ps._print_devices([{**BOOKS, **change}])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.endswith(said) if said else row.endswith("2.00 KiB")


def test_projects_are_listed_once_there_are_two(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that the other tables use; names of one project need no explanation."""
    one = {"project": "demo", "file": None, "names": {"a": "a"}}
    print_projects([one])
    assert capsys.readouterr().out == ""
    print_projects([one, {"project": "rag", "file": "/rag/k.toml", "names": {"a": "a@rag"}}])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["demo", "given", "in", "code", "a"] in rows
    assert ["rag", "/rag/k.toml", "a@rag"] in rows
