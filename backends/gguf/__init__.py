"""GGUF files: their headers, skimmed in milliseconds and never trusted.

`read_header(path)` gives a `GgufHeader`; `header.shape()` is what footprints are computed from.
"""

from backends.gguf.checks import Check
from backends.gguf.header import GgufHeader, read_header
from backends.gguf.quantization import bits_per_weight
from backends.gguf.skim import SkimmedArray
from backends.gguf.table import FileIdentity, TensorInfo

__all__ = [
    "Check",
    "FileIdentity",
    "GgufHeader",
    "SkimmedArray",
    "TensorInfo",
    "bits_per_weight",
    "read_header",
]
