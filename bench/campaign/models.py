"""The campaign's models: five of four kinds, and the configuration that names them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
GGUF = {"a": "classifier", "b": "evaluator", "c": "embedder"}
"""The demo model behind each name that llama.cpp runs; `b` by the worker over llama-cpp-python."""
NAMES = ("a", "b", "c", "w", "s")
"""`w` is a Python model, `s` a program that serves."""
STALL_S = 3.0


def configuration(
    root: Path, files: Mapping[str, Path], limit: int, contexts: Mapping[str, int]
) -> str:
    """The text of the configuration.

    Args:
        root: the campaign's folder.
        files: the GGUF files by the model's name.
        limit: bytes that models may take.
        contexts: the context of each of those models.
    """
    lines = ["[budget]", 'device = "host"', f"limit = {limit}", "reserve = 0"]
    lines += ["[keeper]", f"stall_timeout = {STALL_S}", "stop_grace = 0.5"]
    lines += ["[kv]", f"folder = {_text(root / 'kv')}"]
    lines += ["[trace]", "enabled = true", f"folder = {_text(root / 'runs')}"]
    for name, path in files.items():
        lines += [f"[models.{name}]", f"path = {_text(path)}", f"context = {contexts[name]}"]
        lines.append("threads = 1")
    lines.insert(lines.index("[models.b]") + 1, 'backend = "llama-cpp-python"')
    lines.insert(lines.index("[models.c]") + 1, 'role = "embedder"')
    lines += ["[models.w]", 'factory = "worker_model:Adder"', f"cwd = {_text(HERE)}"]
    lines += ['bytes = "24MiB"', f"options = {{ mischief = {_text(root / 'worker-mischief')} }}"]
    command = [sys.executable, "server_program.py", "{port}", str(root)]
    lines += ["[models.s]", f"command = {json.dumps(command)}", f"cwd = {_text(HERE)}"]
    lines += ['bytes = "24MiB"', 'ready = "/health"', 'can = ["chat"]']
    return "\n".join(lines) + "\n"


def _text(value: Path) -> str:
    return json.dumps(str(value))
