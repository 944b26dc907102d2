"""The name of a quantization, from the tensors and not from a file's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from budget.memory.shape import GGML_TYPES, TensorShape

FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""llama.cpp's file types (`enum llama_ftype`), by the number in `general.file_type`."""


_FALLBACK_OF: Final = {"Q5_0": "Q4_K", "Q5_1": "Q5_K", "IQ4_NL": "Q3_K", "Q8_0": "Q6_K"}


def bits_per_weight(ggml_type: str) -> float:
    """Bits that one weight takes in a tensor of that type."""
    elements, n_bytes = GGML_TYPES[ggml_type]
    return n_bytes * 8 / elements


def weights_by_type(tensors: Iterable[TensorShape]) -> dict[str, int]:
    """The number of weights of each ggml type, most frequent first; all tensors count."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.ggml_type] += tensor.n_elements
    return dict(counts.most_common())


def min_bits_per_weight(tensors: Iterable[TensorShape]) -> float:
    """The bits per weight of the coarsest matrix; 0.0 when there is no matrix.

    Vectors (norms, biases) are left out: they stay F32 in every quantization.
    """
    bits = (bits_per_weight(t.ggml_type) for t in tensors if len(t.dims) > 1 and t.n_elements)
    return min(bits, default=0.0)


def quantization(tensors: Iterable[TensorShape]) -> str:
    """The quantization's name, such as `Q4_K_M`, `Q8_0` or `F16`; `unknown` without a matrix.

    The type with the most weights in the layers' matrices gives the base. The K-quant mixes differ
    in what they raise (`src/llama-quant.cpp`): `Q4_K_M` and `Q5_K_M` put Q6_K into half of `attn_v`
    and `ffn_down`, `Q4_K_S` puts Q5_K into a few; the Q3_K mixes raise `ffn_down` to Q4_K (`_M`) or
    Q5_K (`_L`). Rows that are no multiple of 256 fall back to an older type beside the K type.
    """
    matrices = [t for t in tensors if len(t.dims) > 1]
    layers = [t for t in matrices if t.layer is not None] or matrices
    counts = weights_by_type(layers)
    if not counts:
        return "unknown"
    base = next(iter(counts))
    if _FALLBACK_OF.get(base) in counts:
        base = _FALLBACK_OF[base]
    if base in {"Q4_K", "Q5_K"} and "Q6_K" in counts:
        return f"{base}_M"
    if base == "Q5_K" or (base == "Q4_K" and "Q5_K" in counts):
        return f"{base}_S"
    if base == "Q3_K":
        down = weights_by_type(t for t in layers if ".ffn_down" in t.name)
        most = next(iter(down), base)
        return "Q3_K_" + {"Q5_K": "L", "Q4_K": "M"}.get(most, "S")
    return base
