"""What children inherit: no secret of the caller, nothing that would change their arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.engine_process.process import engine_environment
from backends.machine.environment import child_environment


def test_keys_and_llama_settings_stay_out() -> None:
    """An allow-list: what is not known to be needed is not passed on, whatever its name."""
    inherited = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "1",
        "OPENAI_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "SOMETHING_NEW": "secret",
        "LLAMA_ARG_CTX_SIZE": "256",
        "PYTHONPATH": "/somewhere",
    }
    env = child_environment(inherited=inherited)
    assert set(env) == {
        "PATH",
        "HOME",
        "LC_ALL",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "GGML_NO_BACKTRACE",
    }


def test_what_is_added_wins() -> None:
    """Library paths and GPU numbers are ours to say."""
    env = child_environment({"LD_LIBRARY_PATH": "/ours"}, {"LD_LIBRARY_PATH": "/theirs"})
    assert env["LD_LIBRARY_PATH"] == "/ours"


def test_an_engine_carries_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark by which leftovers are found stands beside the same allow-list."""
    monkeypatch.setenv("SOME_API_KEY", "secret")
    env = engine_environment(Path("/run/here"), {})
    assert env["KEEPWARM_ENGINE_OF"] == "/run/here"
    assert "SOME_API_KEY" not in env
