"""A llama-server of the user: a flag that it does not know is left out, or it is refused by that name."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest

from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.llama.older_builds import fitted, fitted_to
from backends.openai import AsyncTransport
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from tests.engines.support import HELLO, llama, placement, running

SETTINGS = LaunchSettings(Path("/m.gguf"), "m", Path("/s.sock"), Path("/slots"), 1, 1)
BINARY = Path("/opt/llama-server")
HIDDEN = {
    *("--sse-ping-interval", "--no-cache-idle-slots", "--ctx-checkpoints", "--cache-ram"),
    *("--load-mode", "--no-ui", "--fit", "--offline"),
}
"""What builds of 2025 did not have."""


def own(**args: object) -> list[str]:
    """The arguments of a placement, without the program."""
    return server_argv(BINARY, EngineArgs(n_ctx=512, **args), SETTINGS)[1:]  # type: ignore[arg-type]


def flags(argv: list[str]) -> set[str]:
    """The flags among arguments."""
    return {word for word in argv if word.startswith("--")}


def test_what_an_older_build_does_not_know_is_left_out_or_called_as_it_calls_it() -> None:
    """Nothing is lost: those flags say what such a build does anyway."""
    argv = own()
    known = (flags(argv) - HIDDEN) | {"--no-mmap", "--no-webui", "--swa-checkpoints"}
    found, left_out = fitted_to(known, argv, (), BINARY)
    assert flags(found) <= known
    assert {"--no-mmap", "--no-webui"} <= flags(found)
    assert found[found.index("--swa-checkpoints") + 1] == "0"
    assert set(left_out) == HIDDEN - {"--load-mode", "--no-ui", "--ctx-checkpoints"}
    assert "-1" not in found


def test_a_flag_that_changes_what_runs_is_refused_by_its_name() -> None:
    """A draft model under its older name is no loss; without any name it is one."""
    argv = own(swa_full=True)
    with pytest.raises(ConfigError, match=r"/opt/llama-server knows no --swa-full"):
        fitted_to(flags(argv) - {"--swa-full"}, argv, (), BINARY)
    argv = own(draft_model="/d.gguf")
    known = (flags(argv) - {"--spec-draft-model"}) | {"--model-draft"}
    found, _ = fitted_to(known, argv, (), BINARY)
    assert found[found.index("--model-draft") + 1] == "/d.gguf"


def test_further_arguments_of_the_user_stay_as_they_are() -> None:
    """They were put to this llama-server itself."""
    argv = [*own(), "--mine", "1"]
    found, left_out = fitted_to(flags(argv) - {"--mine"}, argv, ("--mine", "1"), BINARY)
    assert found == argv
    assert left_out == []


@pytest.mark.real
def test_the_installed_build_is_not_asked(tmp_path: Path) -> None:
    """It is the one that keepwarm was made for, and a question takes a tenth of a second."""
    argv = own()
    assert fitted(find_binary("llama-server"), argv, ()) == (argv, [])
    with pytest.raises(ConfigError, match="knows no --model"):
        fitted(older(tmp_path, {"--model"}), argv, ())


@pytest.mark.real
def test_an_older_llama_server_that_is_named_serves_a_model(
    tmp_path: Path,
    runtime_dir: Path,
    tiny_models: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ends at a flag that it does not know; the log says what was left out."""
    caplog.set_level(logging.INFO, "keepwarm.keeper")
    binary = older(tmp_path, HIDDEN)

    async def scenario() -> str:
        made = llama(tiny_models["producer"], runtime_dir, server=binary)
        async with running(made, placement()) as engine:
            client = AsyncTransport()
            answer = await client.chat(engine.endpoint, HELLO)
            await client.aclose()
            return answer.content

    assert asyncio.run(scenario())
    (said,) = [r.getMessage() for r in caplog.records if "knows no" in r.getMessage()]
    assert "--cache-ram" in said


def older(folder: Path, hidden: set[str]) -> Path:
    """The installed llama-server as a build that lacks some flags."""
    real = find_binary("llama-server")
    program = folder / "llama-server"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, re, subprocess, sys\n"
        f"hidden, real = {sorted(hidden)!r}, {str(real)!r}\n"
        f"os.environ.update({library_env(real)!r})\n"
        "for word in sys.argv[1:]:\n"
        "    if word in hidden:\n"
        "        sys.exit(f'error: invalid argument: {word}')\n"
        "if '--help' in sys.argv:\n"
        "    said = subprocess.run([real, '--help'], capture_output=True, text=True).stdout\n"
        "    lacks = re.compile('|'.join(f'{name}\\\\b' for name in hidden))\n"
        "    print(''.join(line for line in said.splitlines(True) if not lacks.search(line)))\n"
        "    sys.exit(0)\n"
        "os.execv(real, [real, *sys.argv[1:]])\n"
    )
    program.chmod(0o755)
    return program
