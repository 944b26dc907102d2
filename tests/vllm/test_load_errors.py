"""Why a vLLM server did not become ready, from the lines of its log."""

from __future__ import annotations

import pytest

from backends.vllm.load_errors import cause_of, load_error
from budget.errors import LoadFailed, OutOfMemory

ENGINE = [
    "(EngineCore pid=7) ERROR 11-28 Traceback (most recent call last):",
    "(EngineCore pid=7) ERROR 11-28 ValueError: Unknown quantization method: q9.",
    "(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.",
]


def test_the_cause_is_what_the_engine_raised_and_not_that_it_failed() -> None:
    """The API server's own error, the last one in the log, says nothing."""
    assert cause_of(ENGINE) == "ValueError: Unknown quantization method: q9."
    error = load_error("answers", 1, ENGINE, ENGINE, "cuda:0")
    assert type(error) is LoadFailed
    assert "Unknown quantization method: q9" in str(error)
    assert error.facts["exit_code"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: No available memory for the cache blocks.",
        "ValueError: 1.00 GiB is needed, which is larger than the available KV cache memory (0.1 GiB).",
        "ValueError: Free memory on device is less than desired GPU memory utilization (0.9).",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ],
)
def test_bytes_that_do_not_suffice_are_out_of_memory_on_its_device(line: str) -> None:
    """The core may try another placement then."""
    error = load_error("answers", 1, [line, *ENGINE[2:]], [line], "cuda:0")
    assert isinstance(error, OutOfMemory)
    assert error.facts["device"] == "cuda:0"


def test_a_log_without_an_exception_is_quoted() -> None:
    """A server that was killed says nothing: its last lines are all there is."""
    error = load_error("answers", -9, ["loading weights"], ["loading weights"], "host")
    assert "was ended by signal 9" in str(error)
    assert "loading weights" in str(error)
