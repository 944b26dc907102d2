"""The llama.cpp engine: a managed llama-server process per loaded model."""

from backends.engine_process.orphans import sweep_leftovers
from backends.llama.engine import LlamaServerEngine

__all__ = ["LlamaServerEngine", "sweep_leftovers"]
