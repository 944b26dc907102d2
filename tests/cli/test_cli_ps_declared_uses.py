"""What `keepwarm ps` prints of plans."""

from __future__ import annotations

from typing import Any

import pytest

from shim.cli.commands.ps.command import print_plans

QUIET: dict[str, Any] = {
    "loads": 0,
    "used": 0,
    "staged_bytes": 0,
    "wasted_bytes": 0,
    "mode": "load",
    "staging": None,
    "staged": [],
    "loaded": [],
    "cores_are_busy": False,
}


def test_a_plan_is_a_row_with_its_next_uses(capsys: pytest.CaptureFixture[str]) -> None:
    """The first few of them, each with what is there of it; then what looking ahead did."""
    uses = [{"model": f"m{i}", "engine": f"e{i}", "state": "absent"} for i in range(8)]
    uses[0]["state"] = "staged"
    plan = {"plan": "7-ab", "client": "c1", "pid": 7, "left": 40, "next": uses}
    done = {"loads": 3, "used": 2, "staged_bytes": 2048, "wasted_bytes": 1024, "staging": "e1"}
    print_plans([plan], {**QUIET, **done, "cores_are_busy": True})
    _, header, row, _, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["plan", "process", "next", "uses", "left"]
    assert row.split()[:4] == ["7-ab", "7", "m0", "(staged),"]
    assert "m5 (absent), ..." in row
    assert row.endswith("40")
    assert line == (
        "looking ahead (load): 3 loads, 2 used; 2.00 KiB staged, 1.00 KiB wasted; reading e1; "
        "loads wait for a free core"
    )


def test_without_plans_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless something was made of earlier ones."""
    print_plans([], QUIET)
    assert capsys.readouterr().out == ""
    print_plans([], {**QUIET, "loads": 1})
    assert "1 load, 0 used" in capsys.readouterr().out
