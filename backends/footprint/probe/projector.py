"""The bytes of a multimodal projector, by llama.cpp's own figure; part of the probe's process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from backends.footprint.probe.native import (
    EXIT_LOAD,
    EXIT_UNSUPPORTED,
    FLASH_ATTENTION,
    DevicePointer,
    Ggml,
    Map,
    ProbeError,
    in_order,
)

_PROJECTOR_SYMBOL = "_Z21mtmd_get_memory_usagePKc19mtmd_context_params"


class _ProjectorParams(ctypes.Structure):
    """`mtmd_context_params` (tools/mtmd/mtmd.h)."""

    _fields_ = (
        ("use_gpu", ctypes.c_bool),
        ("device", ctypes.c_void_p),
        ("print_timings", ctypes.c_bool),
        ("n_threads", ctypes.c_int),
        ("image_marker", ctypes.c_char_p),
        ("media_marker", ctypes.c_char_p),
        ("flash_attn_type", ctypes.c_int),
        ("warmup", ctypes.c_bool),
        ("image_min_tokens", ctypes.c_int),
        ("image_max_tokens", ctypes.c_int),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("batch_max_tokens", ctypes.c_int),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
    )


def _projector_library(folder: Path) -> Path:
    """The build's libmtmd: the binding is built without it, the server beside it has it."""
    for place in (folder, folder.parents[1] / "lib"):
        if (place / "libmtmd.so").exists():
            return place / "libmtmd.so"
    raise ProbeError(EXIT_UNSUPPORTED, "this build of llama.cpp has no libmtmd")


def measure_projector(binding: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes of a multimodal projector by device, with its compute buffer for the largest image.

    What llama-server does with `--mmproj`, as if it warmed up (`tools/mtmd/mtmd.cpp`,
    `mtmd_get_memory_usage`; C++ map, Linux on x86-64).
    """
    folder = Path(binding._base_path)
    ggml = Ggml(folder)
    for endpoint in request["rpc"]:
        ggml.add_rpc(endpoint)
    library = ctypes.CDLL(str(_projector_library(folder)))
    library.mtmd_context_params_default.restype = _ProjectorParams
    params = library.mtmd_context_params_default()
    params.use_gpu = request["use_gpu"]
    params.warmup = True
    params.flash_attn_type = FLASH_ATTENTION[request["flash_attention"]]
    function = getattr(library, _PROJECTOR_SYMBOL)
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _ProjectorParams]
    found = Map()
    function(ctypes.addressof(found), os.fsencode(request["projector"]), params)
    nodes = list(in_order(ctypes.cast(found.root, DevicePointer)))
    if not nodes or len(nodes) != found.count:
        raise ProbeError(EXIT_LOAD, "llama.cpp refuses the projector")
    return [{"device": ggml.name_of_device(node.device), "n_bytes": node.n_bytes} for node in nodes]
