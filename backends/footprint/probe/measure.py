"""The dry measurement itself: runs in a short process of its own, `python -m`.

Reads one JSON request from standard input (`path`, `args`: the fields of `EngineArgs`, or `many` of
them), writes one JSON answer to standard output, and llama.cpp's log to standard error. Only the
standard library and the binding's ctypes declarations are imported, so that the process costs
little and a crash of llama.cpp takes nothing else with it.

The figures come from the C++ function
`llama_get_memory_breakdown` (`src/llama-ext.h`).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from backends.footprint.probe.native import (
    EXIT_CONTEXT,
    EXIT_LOAD,
    EXIT_MISMATCH,
    EXIT_UNSUPPORTED,
    Ggml,
    Map,
    ProbeError,
    in_order,
)
from backends.footprint.probe.parameters import binding, context_params, model_params
from backends.footprint.probe.projector import measure_projector

LOAD_MODE_NONE = 0  # the only mode that `no_alloc` accepts

_BREAKDOWN_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_COMPUTE_LINE = re.compile(r"(\S+)\s+compute buffer size =\s+([\d.]+) MiB")
_OUTPUT_LINE = re.compile(r"(\S+)\s+output buffer size =\s+([\d.]+) MiB")
_COPIES_LINE = re.compile(r"sched copies = (\d+)")
_MIB = 1 << 20


def _breakdown(folder: Path, context: Any, ggml: Ggml) -> list[dict[str, Any]]:
    function = getattr(ctypes.CDLL(str(folder / "libllama.so")), _BREAKDOWN_SYMBOL)
    # A class with a destructor is returned through a hidden first pointer (System V, x86-64).
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    found = Map()
    function(ctypes.addressof(found), context)
    nodes = list(in_order(found.root))
    if len(nodes) != found.count:
        raise ProbeError(EXIT_MISMATCH, f"{len(nodes)} nodes in a map of {found.count}")
    return [
        {
            "buffer_type": ggml.name(node.buffer_type),
            "device": ggml.device_of(node.buffer_type),
            "model": node.model,
            "context": node.context,
            "compute": node.compute,
        }
        for node in nodes
    ]


def _cross_check(rows: list[dict[str, Any]], log: str) -> None:
    """Compare the compute buffers in the log with those of the map, to detect a change of layout."""
    # A context may reserve more than once; the last lines describe the buffers that stay.
    logged = {m[1]: float(m[2]) for m in _COMPUTE_LINE.finditer(log)}
    for row in rows:
        expected = logged.get(row["buffer_type"])
        if expected is not None and abs(row["compute"] / _MIB - expected) > 0.0051:
            raise ProbeError(
                EXIT_MISMATCH,
                f"{row['buffer_type']}: {row['compute']} bytes of compute buffer read, "
                f"{expected} MiB in the log",
            )


def _output_row_bytes(binding: Any, model: Any, args: dict[str, Any], log: str) -> int:
    """The bytes of a row of the host output buffer: logits and embeddings (`output_reserve`)."""
    floats = binding.llama_vocab_n_tokens(binding.llama_model_get_vocab(model))
    if args["embeddings"]:
        floats += binding.llama_model_n_embd_out(model)
    n_bytes = int(4 * floats)
    match = _OUTPUT_LINE.search(log)
    if match and abs(n_bytes * args["slots"] / _MIB - float(match[2])) > 0.0051:
        raise ProbeError(
            EXIT_MISMATCH,
            f"{args['slots']} output rows of {n_bytes} bytes expected, {match[2]} MiB in the log",
        )
    return n_bytes


class _Session:
    """llama.cpp with the devices of one request; models are loaded and measured one by one."""

    def __init__(self, binding: Any, path: str, log: list[str]) -> None:
        self._binding = binding
        self._path = os.fsencode(path)
        self._log = log
        self._folder = Path(binding._base_path)
        binding.llama_backend_init()
        self._ggml = Ggml(self._folder)
        self._servers: set[str] = set()
        self._loaded: tuple[object, Any] | None = None

    def measure(self, args: dict[str, Any]) -> dict[str, Any]:
        """The answer for one set of arguments; a model loaded with the same parameters is reused."""
        for endpoint in args["rpc"]:
            if endpoint not in self._servers:
                self._ggml.add_rpc(endpoint)
                self._servers.add(endpoint)
        model = self._model(args)
        self._log.clear()
        context = self._binding.llama_init_from_model(model, context_params(self._binding, args))
        if not context:
            raise ProbeError(EXIT_CONTEXT, "llama.cpp refuses the context")
        try:
            return self._answer(model, context, args)
        finally:
            self._binding.llama_free(context)

    def _model(self, args: dict[str, Any]) -> Any:
        key = (
            args["n_gpu_layers"],
            args["repack"],
            *map(tuple, (args["devices"], args["tensor_split"])),
        )
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        devices = self._ggml.devices(args["devices"])
        params = model_params(self._binding, args, devices, LOAD_MODE_NONE)
        params.no_alloc = True
        model = self._binding.llama_model_load_from_file(self._path, params)
        if not model:
            raise ProbeError(EXIT_LOAD, "llama.cpp refuses the file")
        if self._loaded is not None:
            self._binding.llama_model_free(self._loaded[1])
        self._loaded = (key, model)
        return model

    def _answer(self, model: Any, context: Any, args: dict[str, Any]) -> dict[str, Any]:
        rows = _breakdown(self._folder, context, self._ggml)
        text = "".join(self._log)
        _cross_check(rows, text)
        architecture = self._text(model, "general.architecture")
        # Layers that only predict further tokens; llama.cpp does not count them among the others.
        predicting = int(self._text(model, f"{architecture}.nextn_predict_layers") or 0)
        return {
            "buffers": rows,
            "output_row_bytes": _output_row_bytes(self._binding, model, args, text),
            "n_batch": self._binding.llama_n_batch(context),
            "n_layers": self._binding.llama_model_n_layer(model) + predicting,
            "n_predicting": predicting,
            "n_ctx": self._binding.llama_n_ctx(context),
            "n_embd": self._binding.llama_model_n_embd(model),
            "architecture": architecture,
            "copies": int(copies[1]) if (copies := _COPIES_LINE.search(text)) else 1,
        }

    def _text(self, model: Any, key: str) -> str:
        """A value of the file's metadata; empty where there is none."""
        found = ctypes.create_string_buffer(64)
        self._binding.llama_model_meta_val_str(model, key.encode(), found, len(found))
        return found.value.decode(errors="replace")


def _measure_all(session: _Session, many: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An answer for each; one that llama.cpp refuses is `{"error": why}`."""
    answers = []
    for args in many:
        try:
            answers.append(session.measure(args))
        except ProbeError as error:
            answers.append({"error": str(error)})
    return answers


def _log_to_stderr(binding: Any, log: list[str]) -> Any:
    def write(_level: int, text: bytes, _user_data: Any) -> None:
        line = text.decode(errors="replace")
        log.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()

    callback = binding.llama_log_callback(write)
    binding.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _answer(binding: Any, request: dict[str, Any], log: list[str]) -> Any:
    if "projector" in request:
        return measure_projector(binding, request)
    session = _Session(binding, request["path"], log)
    if "many" in request:
        return _measure_all(session, request["many"])
    return session.measure(request["args"])


def main() -> int:
    """Measure what standard input asks for; returns the exit status."""
    request = json.load(sys.stdin)
    log: list[str] = []
    try:
        if platform.machine() not in {"x86_64", "AMD64"} or sys.platform != "linux":
            raise ProbeError(
                EXIT_UNSUPPORTED, "the dry measurement needs Linux on x86-64 (a C++ result)"
            )
        library = binding()
        callback = _log_to_stderr(
            library, log
        )  # llama.cpp keeps a pointer to it, so it must stay alive
        answer = _answer(library, request, log)
    except ProbeError as error:
        sys.stderr.write(f"\nprobe: {error}\n")
        return error.code
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    del callback
    return 0


if __name__ == "__main__":
    import os

    # The kernel frees the contexts, because tearing them down costs time and can crash.
    status = main()
    sys.stderr.flush()
    os._exit(status)
