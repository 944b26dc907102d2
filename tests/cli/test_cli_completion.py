"""What a shell completes: commands, options, models and files, from the configuration alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli import lazy, main
from tests.cli.support import LIMIT_S, CommandPlace


def completed(place: CommandPlace, line: str) -> list[str]:
    """What bash is told for a line whose last word is begun."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    env = {**place.env, **asked, "_KEEPWARM_COMPLETE": "bash_complete"}
    return CliRunner().invoke(main, [], prog_name="keepwarm", env=env).stdout.split()


def test_commands_and_groups_are_completed_without_being_imported(
    place: CommandPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are only listed; a group's own commands come after its name."""
    assert "plain,reload" in completed(place, "keepwarm config re")
    monkeypatch.setattr(lazy.LazyGroup, "get_command", lambda *_: 1 // 0)
    assert completed(place, "keepwarm cha") == ["plain,chat"]
    assert {"plain,run", "plain,demo"} <= set(completed(place, "keepwarm "))


def test_models_are_completed_by_the_configuration_and_no_keeper_starts(
    place: CommandPlace,
) -> None:
    """Wherever a command takes one; where a path begins there are files."""
    for command in ("chat", "run", "embed", "show", "stop", "logs", "load", "unload", "pin"):
        assert completed(place, f"keepwarm {command} w") == ["plain,writer"], command
    assert completed(place, "keepwarm chat ./mo") == ["file,./mo"]
    assert "plain,--temperature" in completed(place, "keepwarm chat --te")
    assert not place.json("ps")["running"]


def test_what_cannot_be_completed_is_silent(place: CommandPlace) -> None:
    """A broken configuration and a command that is none complete to nothing."""
    assert completed(place, "keepwarm chta w") == []
    place.config.write_text("[models")
    assert completed(place, "keepwarm chat w") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(place: CommandPlace, shell: str) -> None:
    """That names the variable by which it asks; its first line says where it belongs."""
    text = place.run("completion", shell).stdout
    assert text.startswith("# In ~/.")
    assert f"_KEEPWARM_COMPLETE={shell}_complete" in text
    assert place.run("completion", "tcsh").exit_code == 2


def test_bash_completes_by_the_script(place: CommandPlace) -> None:
    """The command itself, in a shell of its own; a terminal's output has no escapes in it."""
    script = (
        'eval "$(keepwarm completion bash)"; COMP_WORDS=(keepwarm show wri); COMP_CWORD=2; '
        '_keepwarm_completion keepwarm; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{place.env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**place.env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.stdout, done.stderr) == ("writer\n", "")
