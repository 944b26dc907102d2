"""Two projects side by side at one keeper process, with real engines and a crash between."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.keeper.support import World
from tests.processes import alive, wait_until

pytestmark = pytest.mark.real

TWO_CALLS = """
for turn in range(2):
    reply = s.chat("a", "Hello.", max_tokens=2)
    say(tokens=reply.usage.completion_tokens, engine=reply.residency.engine)
    while not os.path.exists(f"go-{turn}"): time.sleep(0.02)
"""


def test_two_projects_with_one_name_are_served_side_by_side_and_after_a_crash(
    keeper_world: World, tiny_models: dict[str, Path]
) -> None:
    """Each by its own file; the keeper after the crash has both, whichever program starts it."""
    demo = keeper_world.client(TWO_CALLS)
    first = demo.hear()
    folder = keeper_world.root / "rag"
    folder.mkdir()
    (folder / "keepwarm.toml").write_text(
        f'[models.a]\npath = "{tiny_models["producer"]}"\ncontext = 512\n'
    )
    rag = keeper_world.client(f"s = Shim('{folder}/keepwarm.toml')\n" + TWO_CALLS)
    second = rag.hear()
    assert (first["tokens"], second["tokens"]) == (2, 2)
    assert first["engine"] != second["engine"]
    assert keeper_world.engine("a@rag")["file"] == str(tiny_models["producer"])
    assert keeper_world.engine("a")["file"] == str(tiny_models["classifier"])
    pid = keeper_world.keeper_pid()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    (keeper_world.root / "go-0").touch()
    assert (demo.hear(), rag.hear()) == (first, second)
    projects = {row["project"]: row["names"] for row in keeper_world.status()["projects"]}
    assert len(projects) == 2
    assert {"a", "b", "e"} in map(set, projects.values())
    (keeper_world.root / "go-1").touch()
