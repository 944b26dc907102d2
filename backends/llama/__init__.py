"""The llama.cpp engine: a managed llama-server process per loaded model."""

from backends.llama.engine import LlamaServerEngine
from backends.llama.process.orphans import sweep_leftovers

__all__ = ["LlamaServerEngine", "sweep_leftovers"]
