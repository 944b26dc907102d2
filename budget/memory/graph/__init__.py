"""llama.cpp's graphs, and what ggml's allocator reserves for them: tensors, schedule, allocator.

`LAYOUTS` says which architectures are known. Tests compare every buffer with llama.cpp's dry run, which
says when a new llama.cpp changed a graph.
"""

from budget.memory.graph.allocator import reserved_bytes
from budget.memory.graph.architectures import graph_of
from budget.memory.graph.layouts import LAYOUTS, LLAMA_BUILD, NORM_FIRST, has_graph
from budget.memory.graph.schedule import PIPELINE_COPIES
from budget.memory.graph.tensors import HOST

__all__ = [
    "HOST",
    "LAYOUTS",
    "LLAMA_BUILD",
    "NORM_FIRST",
    "PIPELINE_COPIES",
    "graph_of",
    "has_graph",
    "reserved_bytes",
]
