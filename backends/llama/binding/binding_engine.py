"""The engine of kind `llama-cpp-python`: llama.cpp in a worker of ours, where there is no llama-server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from backends.base import Capabilities, Endpoint
from backends.footprint.dry_run import wire_args
from backends.llama.args import LaunchSettings
from backends.llama.binaries import binding_folder
from backends.llama.engine import LlamaServerEngine
from backends.machine.gpus import VARIABLE
from budget.errors import ConfigError
from budget.footprint import EngineArgs

_MODULE: Final = "backends.llama.binding.binding_worker"
_RERANKS: Final = "--reranking"
_ROOT: Final = str(Path(__file__).parents[3])
NO_SERVER: Final = (
    "llama-server was not found: llama-cpp-python runs the GGUF files, without slots (one request at a"
    " time), saved KV state, preemption, tools, images and rerankers."
)
"""What a user is told where this kind is chosen because there is no llama-server."""


class LlamaBindingEngine(LlamaServerEngine):
    """A worker process over llama-cpp-python. It answers one request at a time, on llama-server's paths.

    Arguments are those of `LlamaServerEngine`.
    """

    program: ClassVar[str] = "the llama-cpp-python worker"

    @property
    def capabilities(self) -> Capabilities:
        """The engine's features. An embedding engine does not chat."""
        return replace(super().capabilities, tools=False, save_restore=False)

    @property
    def endpoint(self) -> Endpoint:
        """The engine's socket."""
        able = self.capabilities
        return Endpoint.of_engine(self._model_id, self._socket, able, "llama-cpp-python")

    async def _command(
        self, args: EngineArgs, settings: LaunchSettings
    ) -> tuple[list[str], list[str], Mapping[str, str]]:
        check_binding_args(args)
        if binding_folder() is None:
            raise ConfigError(
                "llama-cpp-python is not installed here.",
                hint="Install it, or set KEEPWARM_LLAMA_BIN to a folder that has llama-server.",
            )
        order = {
            "path": str(settings.model_path),
            "model_id": settings.model_id,
            "socket": str(settings.socket_path),
            "threads": settings.threads,
            "args": wire_args(args),
        }
        inherited = os.environ.get("PYTHONPATH")
        env = {"PYTHONPATH": f"{_ROOT}{os.pathsep}{inherited}" if inherited else _ROOT}
        if not args.layer_devices:
            # llama.cpp would compute long prompts on a GPU, and take its memory.
            env[VARIABLE] = ""
        return [sys.executable, "-P", "-u", "-m", _MODULE], [json.dumps(order)], env


def check_binding_args(args: EngineArgs) -> None:
    """Refuse what needs llama-server.

    Raises:
        ConfigError: with the key.
    """
    asked = {
        "mmproj": args.mmproj,
        "draft_model": args.draft_model,
        "lora": args.lora,
        'role = "reranker"': _RERANKS in args.extra,
        "engine_args": set(args.extra) - {_RERANKS},
        "RPC devices": any(args.rpc),
    }
    needs = [name for name, value in asked.items() if value]
    if needs:
        raise ConfigError(
            f"{' and '.join(needs)} cannot be honoured: llama-cpp-python runs the model, and not"
            " llama-server.",
            hint="Leave it out; or install llama.cpp's llama-server, and leave out"
            ' backend = "llama-cpp-python".',
            keys=needs,
        )
