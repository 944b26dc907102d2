"""A conversation over a restart of the real keeper, and the commands that show and delete it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import new_place
from tests.kv.support import STORY

pytestmark = pytest.mark.real


def test_a_conversation_goes_on_after_the_keeper_was_stopped(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Its prompt is not evaluated again; `kv` lists what is kept, `kv clear` deletes it."""
    ask = ("chat", "a", STORY, "--max-tokens", "2")
    with new_place(tmp_path / "cache") as place:
        place.configure(
            {"a": {"path": str(tiny_models["classifier"]), "context": 2048, "threads": 1}}
        )
        nothing = place.json("kv", "list")
        assert (nothing["running"], nothing["models"]) == (False, [])
        tokens = place.json(*ask)["timings"]["prompt_n"]
        place.json("keeper", "stop")
        kept = place.json("kv", "list")
        assert (kept["running"], len(kept["models"])) == (False, 1)
        row = kept["models"][0]
        assert (row["models"], row["conversations"]) == (["a"], 1)
        assert row["tokens"] >= tokens
        assert row["bytes"] == kept["total_bytes"] > 0
        timings = place.json(*ask)["timings"]
        assert timings["cache_n"] >= tokens - 1
        shown = place.run("kv")
        assert "conversations" in shown.stdout, shown.stderr
        assert place.json("kv", "list")["running"]
        assert place.json("kv", "clear", "unknown", code=2)["error"]["error"] == "UnknownModel"
        cleared = place.json("kv", "clear", "a")
        assert (cleared["running"], cleared["files"], cleared["bytes"]) == (True, 1, row["bytes"])
        assert place.json("kv", "list")["total_bytes"] == 0
        place.json("keeper", "stop")
        assert place.json("kv", "clear")["files"] == 1, "its model still held it when it ended"
        assert place.json("kv", "list")["models"] == []
