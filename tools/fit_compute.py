"""Fit the closed form of compute buffers to dry runs of the llama.cpp that is installed.

`python tools/fit_compute.py [ARCHITECTURE ...]` measures sparse models on an RPC device on loopback and
writes `budget/estimate/compute_data.py` anew (with architectures named: theirs alone, the others stay
if they are of the same build). A minute or two for each architecture.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.llama.binaries import build_id, find_binary
from budget.estimate.architectures import ARCHITECTURES, FITTED_BUILD
from budget.estimate.compute import regimes
from budget.estimate.compute_data import FIT_PERCENT
from budget.estimate.features import FEATURES, feature_matrices, mode
from tools.fit_samples import Sample, samples
from tools.fit_search import Fit, fit
from tools.rpc import rpc_server
from tools.shapes import SHAPES

OUTPUT = Path(__file__).resolve().parents[1] / "budget" / "estimate" / "compute_data.py"
Sums = Mapping[str, tuple[str, ...]]
_NAMED_COUNT = 3  # how often a published model's sample counts
_HEAD = '''# ruff: noqa: E501
"""Weights of the compute buffers' sums, by architecture; written by `tools/fit_compute.py`.

By `side/place of the split/kernels`: the buffer is the largest of the sums of `budget.estimate.features`.
The `ids` of the split and other small inputs are among what `ids` stands for.
"""

from collections.abc import Mapping
from typing import Final

BUILD: Final = "{build}"
"""The llama.cpp build that was measured: distribution and version."""

FIT_PERCENT: Final[Mapping[str, tuple[float, float]]] = {errors}
"""The mean and the worst difference from the dry runs, in percent of the buffer, by architecture."""

SUMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {{
'''


def grouped(found: Iterable[Sample]) -> dict[str, tuple[list[np.ndarray], list[int]]]:
    """Feature rows and measured bytes by `side/place of the split/kernels`."""
    groups: dict[str, tuple[list[np.ndarray], list[int]]] = defaultdict(lambda: ([], []))
    for sample in found:
        layers = sample.args.n_gpu_layers
        matrices = feature_matrices(sample.shape, sample.args)
        measured = (sample.host_bytes, sample.device_bytes)
        kernels = mode(sample.shape, sample.args)
        places = regimes(sample.shape.n_layers)
        for side, matrix, n_bytes, ranges in zip(
            ("host", "device"), matrices, measured, places, strict=True
        ):
            for name, first, last in ranges:
                if first <= layers < last:
                    rows, sizes = groups[f"{side}/{name}/{kernels}"]
                    times = _NAMED_COUNT if sample.named else 1
                    rows.extend([matrix[layers]] * times)
                    sizes.extend([n_bytes] * times)
    return groups


def sums_text(fitted: Fit) -> tuple[str, ...]:
    """The sums as they are written: `6 ids + 4 embd`."""
    return tuple(
        " + ".join(f"{int(w)} {FEATURES[j]}" for j, w in enumerate(row) if w)
        for row in fitted.weights
    )


def fit_architecture(found: Iterable[Sample]) -> dict[str, tuple[Fit, tuple[str, ...]]]:
    """All groups of one architecture."""
    result = {}
    for key, (rows, sizes) in sorted(grouped(found).items()):
        fitted = fit(np.array(rows), np.array(sizes, dtype=float), np.random.default_rng(0))
        result[key] = fitted, sums_text(fitted)
    return result


def block(architecture: str, sums: Sums) -> str:
    """The entry of one architecture as Python."""
    lines = [f'    "{architecture}": {{']
    for key, texts in sums.items():
        lines.append(f'        "{key}": (')
        lines += [f'            "{text}",' for text in texts]
        lines.append("        ),")
    return "\n".join([*lines, "    },\n"])


def error_percent(fits: Iterable[Fit]) -> tuple[float, float]:
    """The mean and the worst of all samples, in percent."""
    percent = 100 * np.abs(np.concatenate([fitted.errors for fitted in fits]))
    return round(float(percent.mean()), 2), round(float(percent.max()), 1)


def write_module(build: str, entries: Mapping[str, Sums], errors: Mapping[str, object]) -> None:
    """Write the checked-in data."""
    body = "".join(block(name, sums) for name, sums in sorted(entries.items()))
    text = repr(dict(sorted(errors.items())))
    OUTPUT.write_text(_HEAD.format(build=build, errors=text) + body + "}\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", OUTPUT], check=True)


def version(build: str) -> str:
    """The part of a build id that is the same on every machine."""
    return build.rpartition("-")[0]


def main() -> None:
    """Measure, fit and write."""
    known = sorted({shape.architecture for shape in SHAPES.values()})
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("architectures", nargs="*", default=known, choices=[*known, []])
    options = parser.parse_args()
    build = version(build_id(find_binary("llama-server")))
    entries: dict[str, Sums] = {}
    errors: dict[str, object] = {}
    if build == FITTED_BUILD:
        entries, errors = dict(ARCHITECTURES), dict(FIT_PERCENT)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint = stack.enter_context(rpc_server())
        for name in options.architectures:
            start_s = time.monotonic()
            measured = list(samples(name, folder, endpoint))
            fits = fit_architecture(measured)
            entries[name] = {key: texts for key, (_, texts) in fits.items()}
            errors[name] = error_percent(fitted for fitted, _ in fits.values())
            write_module(build, entries, errors)
            seconds = time.monotonic() - start_s
            print(f"{name:12} {len(measured):5} dry runs, {errors[name]}%, {seconds:.0f} s")


if __name__ == "__main__":
    main()
