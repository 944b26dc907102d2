"""The binding without its package, and llama.cpp's parameters for an engine's arguments.

The dry measurement and the worker over the binding (`backends.llama.binding`) both use these, so that what
is measured is what is loaded. They are those that llama-server derives (llama.cpp `common/common.cpp`,
`common_model_params_to_llama` and `common_context_params_to_llama`; `tools/server/server.cpp` and
`server-context.cpp`, `server_output_limits`). Standard library only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from backends.footprint.probe.native import EXIT_UNSUPPORTED, FLASH_ATTENTION, ProbeError

KV_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}


def binding() -> Any:
    """The binding's ctypes declarations, without its package's `__init__`.

    That one imports the high-level API (numpy, jinja2), four times the cost of the whole probe.

    Raises:
        ProbeError: it is not installed.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ProbeError(EXIT_UNSUPPORTED, "llama_cpp is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def model_params(binding: Any, args: dict[str, Any], devices: Any, load_mode: int) -> Any:
    """The parameters of a load. `devices`: llama.cpp's list (`Ggml.devices`), None for all."""
    params = binding.llama_model_default_params()
    if devices is not None:
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.n_gpu_layers = args["n_gpu_layers"]
    if args["tensor_split"]:
        # As many floats as llama.cpp may read.
        share = (ctypes.c_float * binding.llama_max_devices())(*args["tensor_split"])
        params.tensor_split = ctypes.cast(share, type(params.tensor_split))
    params.load_mode = load_mode
    params.use_extra_bufts = args["repack"]
    params.load_mtp = False
    return params


def context_params(binding: Any, args: dict[str, Any]) -> Any:
    """The parameters of an engine's context."""
    params = binding.llama_context_default_params()
    n_batch = min(args["n_batch"], args["n_ubatch"]) if args["embeddings"] else args["n_batch"]
    params.n_ctx = args["n_ctx"]
    params.n_seq_max = args["slots"]
    params.n_batch = n_batch
    params.n_ubatch = args["n_ubatch"]
    params.n_outputs_max = (
        n_batch if args["embeddings"] else min(n_batch, args["slots"] * args["outputs_per_slot"])
    )
    params.n_outputs_max_per_seq = args["outputs_per_slot"]
    params.embeddings = args["embeddings"]
    params.flash_attn_type = FLASH_ATTENTION[args["flash_attention"]]
    params.offload_kqv = True
    params.op_offload = True
    params.no_perf = False
    params.swa_full = args["swa_full"]
    params.kv_unified = args["kv_unified"]
    params.type_k = KV_TYPES[args["kv_type_k"]]
    params.type_v = KV_TYPES[args["kv_type_v"]]
    return params
