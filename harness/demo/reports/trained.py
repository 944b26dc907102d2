"""The demo's trained producer and evaluator: F16 in this package, coarser ones made of it on demand."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final, Literal

from shim import InvalidRequest, OutsideError
from shim.llama_programs import run_program

WEIGHTS: Final = Path(__file__).resolve().parent / "weights"
QUANTIZATIONS: Final = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M")


def trained_model(name: Literal["producer", "evaluator"], quantization: str, folder: Path) -> Path:
    """A trained model's file in a folder, made there unless it is there.

    Raises:
        InvalidRequest: it is none of `QUANTIZATIONS`.
        ConfigError: `llama-quantize` is not installed.
        OutsideError: it failed, or the folder cannot be written.
    """
    if quantization not in QUANTIZATIONS:
        raise InvalidRequest(
            f"The demo's trained models have no quantization {quantization!r}.",
            hint=f"They have {', '.join(QUANTIZATIONS)}.",
        )
    source, target = WEIGHTS / f"{name}-F16.gguf", folder / f"report-{name}-{quantization}.gguf"
    if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as part:
            made = Path(part) / target.name
            if quantization == "F16":
                shutil.copyfile(source, made)
            else:
                run_program("llama-quantize", str(source), str(made), quantization, "1")
            return made.replace(target)
    except OSError as error:
        raise OutsideError(
            f"{target.name} cannot be made in {folder}: {error.strerror or error}.",
            hint="See its space and permissions, or name another folder (`keepwarm demo --models`).",
            file=str(target),
        ) from error
