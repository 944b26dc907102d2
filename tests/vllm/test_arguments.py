"""The command line of vLLM's server: from its share of the budget, in the flags that its version has."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.vllm.program import VllmProgram, find_program
from backends.vllm.server_arguments import (
    KV_FLAG,
    KV_VARIABLE,
    NEEDED,
    ServerSettings,
    server_command,
    server_variables,
)
from backends.vllm.signs import slot_signs
from budget.errors import ConfigError, LoadFailed
from budget.footprint import HOST, EngineArgs, Footprint, Placement

GIB = 1 << 30
OLD = VllmProgram("python", "0.8", frozenset({*NEEDED, "--task"}))
NEW = VllmProgram("python", "0.32", frozenset({*NEEDED, KV_FLAG, "--runner"}))
SETTINGS = ServerSettings(Path("m"), "answers", Path("v.sock"), 80 * GIB)


def placed(device: str = "cuda:0", **args: object) -> Placement:
    """20 GiB in all, of which 4 are KV cache, for 4 slots of 2,048 tokens."""
    part = Footprint(14 * GIB, 4 * GIB, 0, 2 * GIB)
    return Placement(EngineArgs(n_ctx=8192, slots=4, **args), {device: part}, "files")  # type: ignore[arg-type]


def value_of(command: list[str], flag: str) -> str:
    """The word after a flag."""
    return command[command.index(flag) + 1]


def test_a_server_gets_its_share_of_the_device_and_its_cache_in_bytes() -> None:
    """20 of 80 GiB are a quarter; a request gets context / slots."""
    command = server_command(NEW, placed(), SETTINGS)
    assert value_of(command, "--gpu-memory-utilization") == "0.2500"
    assert value_of(command, KV_FLAG) == str(4 * GIB)
    assert value_of(command, "--max-model-len") == "2048"
    assert value_of(command, "--max-num-seqs") == "4"
    assert "--enable-sleep-mode" not in command


def test_a_version_without_bytes_for_its_cache_gets_the_share_alone() -> None:
    """It profiles, and takes for its cache what the share leaves; on the CPU a variable says it."""
    assert KV_FLAG not in server_command(OLD, placed(), SETTINGS)
    assert KV_VARIABLE not in server_variables(OLD, placed(), SETTINGS)
    assert server_variables(OLD, placed(HOST), SETTINGS)[KV_VARIABLE] == "4"
    assert KV_VARIABLE not in server_variables(NEW, placed(HOST), SETTINGS)


def test_a_version_that_lacks_what_is_needed_is_named() -> None:
    """Without a Unix socket any program of this machine could reach it."""
    older = VllmProgram("python", "0.1", frozenset({"--max-model-len"}))
    with pytest.raises(ConfigError, match=r"vLLM 0\.1 has no --uds"):
        server_command(older, placed(), SETTINGS)


def test_an_embedder_is_served_in_the_words_of_its_version() -> None:
    """`--task embed` became `--runner pooling`."""
    assert value_of(server_command(OLD, placed(embeddings=True), SETTINGS), "--task") == "embed"
    assert value_of(server_command(NEW, placed(embeddings=True), SETTINGS), "--runner") == "pooling"


def test_a_server_that_is_to_sleep_is_started_for_it_on_a_gpu_only() -> None:
    """On the CPU vLLM refuses to start with the flag, and nothing would be freed."""
    sleeps = ServerSettings(Path("m"), "answers", Path("v.sock"), 80 * GIB, sleeps=True)
    assert "--enable-sleep-mode" in server_command(NEW, placed(), sleeps)
    assert "--enable-sleep-mode" not in server_command(NEW, placed(HOST), sleeps)
    assert server_variables(NEW, placed(), sleeps)["VLLM_SERVER_DEV_MODE"] == "1"


def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    """The error says what to install, and which key names the interpreter."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(LoadFailed, match="no such module") as caught:
        find_program(str(broken))
    assert "`python`" in caught.value.hint


METRICS = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="x"} 2.0
vllm:num_requests_waiting{engine="0",model_name="x"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="x"} 1.25e+06
vllm:generation_tokens_total{engine="0",model_name="x"} 193.0
"""


def test_the_signs_of_a_server_are_its_requests_and_its_tokens() -> None:
    """Requests that wait are busy too; tokens of prompts and of answers are progress."""
    signs = slot_signs(METRICS)
    assert signs is not None
    assert (signs.busy, signs.prompting, signs.moved) == (3, True, ((1_250_000, 193),))
    assert slot_signs(b"# another program's") is None
