# ruff: noqa: E501
"""Weights of the compute buffers' sums, by architecture; written by `tools/fit_compute.py`.

By `side/place of the split/kernels`: the buffer is the largest of the sums of `budget.estimate.features`.
The `ids` of the split and other small inputs are among what `ids` stands for.
"""

from collections.abc import Mapping
from typing import Final

BUILD: Final = "0.3.36"
"""The llama.cpp build that was measured: distribution and version."""

FIT_PERCENT: Final[Mapping[str, tuple[float, float]]] = {
    "bert": (0.9, 27.1),
    "deepseek2": (3.31, 33.5),
    "falcon-h1": (2.12, 59.3),
    "gemma2": (1.88, 66.6),
    "gemma3": (1.93, 66.6),
    "gpt-oss": (4.15, 66.8),
    "llama": (0.53, 51.0),
    "mamba": (0.07, 61.5),
    "mamba2": (1.63, 73.7),
    "nomic-bert": (0.62, 28.3),
    "phi3": (0.08, 38.4),
    "qwen2": (0.86, 48.5),
    "qwen3": (2.01, 73.2),
    "qwen3moe": (4.37, 93.7),
}
"""The mean and the worst difference from the dry runs, in percent of the buffer, by architecture."""

SUMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "bert": {
        "device/all/flash": (
            "2 ids + 2 embd + 1 all_mask + 1 ff",
            "5 embd",
        ),
        "device/all/scores": (
            "3 ids + 5 embd + 1 all_mask + 1 scores",
            "7 ids + 2 embd + 1 all_mask + 1 ff",
        ),
        "device/last/flash": (
            "1 ids + 2 embd + 1 all_mask + 1 ff",
            "5 embd",
        ),
        "device/last/scores": ("1 ids + 5 embd + 1 all_mask + 1 scores",),
        "device/output/flash": ("",),
        "device/output/scores": ("",),
        "device/some/flash": (
            "1 ids + 2 embd + 1 all_mask + 1 ff",
            "5 embd",
        ),
        "device/some/scores": (
            "1 ids + 5 embd + 1 all_mask + 1 scores",
            "1 ids + 2 embd + 1 all_mask + 1 ff",
        ),
        "host/all/flash": (
            "3 ids + 3 embd + 1 all_mask + 1 ff",
            "6 embd",
            "67 ids + 5 embd + 1 all_mask",
        ),
        "host/all/scores": ("3 ids + 6 embd + 1 all_mask + 1 scores",),
        "host/none/flash": ("3 ids + 3 embd + 1 all_mask",),
        "host/none/scores": ("3 ids + 3 embd + 1 all_mask",),
        "host/some/flash": (
            "3 ids + 3 embd + 1 all_mask + 1 ff",
            "6 embd",
        ),
        "host/some/scores": ("3 ids + 6 embd + 1 all_mask + 1 scores",),
    },
    "deepseek2": {
        "device/all/flash": (
            "210 ids + 1 embd + 1 logits + 6 output_rows + 1 all_mask + 2 q + 1 expert_out + 26 router",
            "67 ids + 1 all_mask + 1 ff + 8 router + 9 shared_ff",
            "3 ids + 4 output_rows + 1 all_mask + 1 ff + 1 expert_out + 25 router + 5 shared_ff",
            "3 ids + 1 all_mask + 2 expert_out + 8 router",
        ),
        "device/all/flash-rotated": (
            "3 ids + 2 embd + 1 all_mask + 2 ff + 1 expert_out + 11 router",
            "2 embd + 1 all_mask + 2 q + 1 expert_out + 3 router",
        ),
        "device/all/scores": (
            "5 output_rows + 2 all_mask + 2 q + 25 router + 2 shared_ff + 1 scores",
            "5 embd + 16 output_rows + 2 all_mask + 1 expert_ff + 1 expert_out + 2 shared_ff",
        ),
        "device/last/flash": (
            "2 embd + 3 output_rows + 1 all_mask + 2 q + 20 router + 1 shared_ff",
            "2 embd + 1 logits",
            "15 ids + 3 embd + 1 all_mask + 2 q",
            "2 q + 3 shared_ff",
        ),
        "device/last/flash-rotated": (
            "341 ids + 2 embd + 9 rotation + 1 all_mask + 2 q + 13 router + 1 shared_ff",
            "4 ids + 4 embd + 1 logits + 1 output_rows + 1 router + 1 shared_ff",
            "80 ids + 1 embd + 1 output_rows + 2 q + 1 expert_ff",
        ),
        "device/last/scores": (
            "1 embd + 5 output_rows + 2 all_mask + 2 q + 20 router + 1 shared_ff + 1 scores",
        ),
        "device/output/flash": (
            "1 logits + 1 output_rows",
            "3 output_rows",
        ),
        "device/output/flash-rotated": (
            "1 logits + 1 output_rows",
            "3 output_rows",
        ),
        "device/output/scores": (
            "1 logits + 1 output_rows",
            "3 output_rows",
        ),
        "device/some/flash": (
            "3 ids + 1 embd + 1 all_mask + 2 expert_out",
            "89 ids + 2 embd + 1 all_mask + 2 q + 1 expert_ff",
            "3 ids + 3 embd + 1 all_mask + 2 q + 20 router + 2 shared_ff",
        ),
        "device/some/flash-rotated": (
            "63 ids + 3 embd + 1 output_rows + 1 all_mask + 2 q + 19 router + 2 shared_ff",
            "3 ids + 1 embd + 1 all_mask + 2 expert_out",
        ),
        "device/some/scores": (
            "3 ids + 2 embd + 1 all_mask + 8 shared_ff",
            "9 ids + 2 embd + 2 all_mask + 2 q + 42 router + 1 scores",
            "3 ids + 1 embd + 1 all_mask + 2 expert_out",
        ),
        "host/all/flash": (
            "4 ids + 2 embd + 1 all_mask + 1 ff + 2 expert_ff + 1 expert_out + 21 router",
            "3 embd + 2 output_rows + 1 all_mask + 2 q + 1 expert_out + 8 router",
            "68 ids + 3 embd + 1 all_mask + 2 q + 29 router + 3 shared_ff",
            "5 ids + 5 embd + 1 logits + 2 output_rows + 1 all_mask + 1 shared_ff",
        ),
        "host/all/flash-rotated": (
            "16 ids + 1 logits + 4 rotation + 1 all_mask + 2 ff + 6 router + 8 shared_ff",
            "90 ids + 2 embd + 7 rotation + 1 all_mask + 2 q + 1 expert_out + 13 router + 1 shared_ff",
            "4 ids + 2 embd + 1 all_mask + 1 expert_out + 6 shared_ff",
            "4 ids + 3 embd + 2 ff + 1 expert_out + 32 router",
        ),
        "host/all/scores": (
            "68 ids + 2 embd + 2 all_mask + 2 ff + 1 expert_out + 2 router",
            "4 ids + 3 embd + 2 all_mask + 2 q + 1 shared_ff + 1 scores",
        ),
        "host/none/flash": ("4 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("4 ids + 2 embd + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask",),
        "host/some/flash": (
            "434 ids + 5 embd + 1 all_mask + 2 q + 52 router",
            "4 ids + 4 embd + 1 all_mask + 3 ff",
            "2 embd + 1 all_mask + 1 ff + 2 expert_ff + 1 expert_out + 21 router",
            "12 ids + 3 embd + 1 all_mask + 2 q + 1 expert_out + 2 router",
        ),
        "host/some/flash-rotated": (
            "4 ids + 1 embd + 1 all_mask + 1 ff + 1 expert_ff + 1 expert_out + 9 router + 4 shared_ff",
            "90 ids + 2 embd + 6 rotation + 1 all_mask + 2 q + 1 expert_out + 13 router + 1 shared_ff",
            "3 embd + 1 output_rows + 8 rotation + 1 all_mask + 2 q + 1 ff",
        ),
        "host/some/scores": (
            "188 ids + 3 embd + 2 output_rows + 3 ff + 1 router",
            "10 ids + 2 embd + 2 all_mask + 2 q + 54 router + 1 shared_ff + 1 scores",
            "4 ids + 4 embd + 2 all_mask + 2 expert_ff + 1 expert_out + 17 router",
        ),
    },
    "falcon-h1": {
        "device/all/flash": (
            "29 ids + 2 embd + 1 all_mask + 1 k + 3 ff + 31 ssm_heads",
            "11 ids + 1 logits + 2 conv_states + 10 k + 14 ssm_heads",
            "5 ids + 2 embd + 1 all_mask + 1 states + 2 conv_states + 1 q + 1 k + 4 inner + 1 conv + 9 ssm_heads",
            "11 ids + 4 embd + 1 output_rows + 1 all_mask + 1 states + 2 conv_states + 3 k + 3 inner + 1 conv + 6 ssm_heads",
        ),
        "device/all/flash-rotated": (
            "9 ids + 1 embd + 1 rotation + 1 all_mask + 1 states + 4 k + 6 inner + 15 ssm_heads",
            "49 ids + 3 embd + 1 all_mask + 7 conv_states + 2 q + 3 ff",
            "6 ids + 1 logits + 2 q + 5 k + 1 inner + 1 conv + 7 ssm_heads",
        ),
        "device/all/scores": (
            "9 ids + 3 embd + 1 all_mask + 1 states + 5 conv_states + 4 conv + 63 ssm_heads",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "100 ids + 3 embd + 1 output_rows + 3 all_v_ids + 3 ff",
        ),
        "device/all/scores-rotated": (
            "1 rotation + 1 all_mask + 1 states + 4 ff",
            "5 embd + 1 logits + 1 output_rows",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "2 output_rows + 2 all_mask + 3 all_v_ids + 1 states + 11 conv_states + 9 q + 1 ff + 2 inner",
        ),
        "device/last/flash": (
            "23 ids + 2 embd + 1 logits + 1 output_rows + 1 all_mask + 18 conv_states + 1 q + 7 k",
            "5 output_rows + 5 conv_states + 15 k + 3 conv",
            "5 ids + 3 embd + 1 q + 3 inner + 32 ssm_heads",
            "37 ids + 2 embd + 1 states + 1 q + 1 k + 3 inner + 2 conv + 26 ssm_heads",
        ),
        "device/last/flash-rotated": (
            "3 embd + 13 rotation + 7 k + 4 inner",
            "2 embd + 1 logits + 2 output_rows + 1 all_mask + 1 states + 2 q",
            "2 embd + 6 output_rows + 2 rotation + 1 states + 1 conv_states + 2 q + 2 inner + 3 conv + 7 ssm_heads",
        ),
        "device/last/scores": (
            "8 ids + 1 logits + 7 output_rows + 4 all_mask + 2 all_v_ids + 27 conv_states + 10 ssm_heads",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "2 embd + 1 states + 2 conv_states + 1 q + 4 inner + 1 conv + 47 ssm_heads",
        ),
        "device/last/scores-rotated": (
            "11 ids + 1 embd + 5 rotation + 1 all_mask + 2 all_v_ids + 1 states + 11 conv_states + 2 inner + 3 conv",
            "28 ids + 2 embd + 2 output_rows + 2 all_mask + 1 all_v_ids + 29 conv_states + 5 q + 1 conv + 5 ssm_heads",
            "2 embd + 1 logits",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
        ),
        "device/output/flash": ("1 logits + 1 output_rows",),
        "device/output/flash-rotated": ("1 logits + 1 output_rows",),
        "device/output/scores": ("1 logits + 1 output_rows",),
        "device/output/scores-rotated": ("1 logits + 1 output_rows",),
        "device/some/flash": (
            "1 embd + 1 logits + 10 conv_states",
            "5 ids + 3 embd + 1 all_mask + 1 q + 3 ff",
            "5 ids + 3 embd + 1 all_mask + 1 states + 1 conv_states + 4 k + 2 inner + 3 conv + 1 ssm_heads",
        ),
        "device/some/flash-rotated": (
            "12 ids + 3 embd + 1 output_rows + 1 rotation + 3 ff + 8 ssm_heads",
            "2 embd + 6 rotation + 1 all_mask + 1 states + 1 conv_states + 2 q + 2 inner + 3 conv",
        ),
        "device/some/scores": (
            "63 ids + 2 embd + 2 output_rows + 1 all_mask + 1 q + 1 scores + 1 inner + 8 ssm_heads",
            "1 ids + 2 embd + 1 output_rows + 2 all_mask + 5 all_v_ids + 1 states + 1 conv_states + 4 inner + 1 conv + 1 ssm_heads",
            "8 ids + 2 embd + 5 output_rows + 2 all_v_ids + 9 q + 1 ff + 2 conv + 5 ssm_heads",
            "3 ids + 3 embd + 1 all_mask + 2 all_v_ids + 3 ff",
        ),
        "device/some/scores-rotated": (
            "2 ids + 3 embd + 27 rotation + 1 all_mask + 3 all_v_ids + 1 conv_states + 1 scores + 11 ssm_heads",
            "12 ids + 3 embd + 1 output_rows + 16 rotation + 1 all_mask + 2 all_v_ids + 1 states + 4 inner + 1 conv + 7 ssm_heads",
            "1 logits + 2 rotation + 3 all_mask + 48 conv_states",
            "1 embd + 8 rotation + 2 all_mask + 3 all_v_ids + 1 states + 3 ff + 10 ssm_heads",
        ),
        "host/all/flash": (
            "14 ids + 3 embd + 1 all_mask + 1 states + 2 conv_states + 1 q + 1 k + 3 inner + 2 conv + 6 ssm_heads",
            "11 ids + 7 embd + 1 all_mask + 1 states + 2 inner + 8 ssm_heads",
            "6 ids + 3 embd + 1 all_mask + 1 q + 3 ff",
            "4 embd + 1 logits + 1 q",
        ),
        "host/all/flash-rotated": (
            "1 ids + 1 embd + 1 logits + 3 q + 32 ssm_heads",
            "6 ids + 3 embd + 5 output_rows + 10 rotation + 1 all_mask + 1 states + 17 conv_states + 2 q + 5 k + 2 inner",
            "22 ids + 3 embd + 2 output_rows + 1 all_mask + 1 q + 1 k + 3 ff + 31 ssm_heads",
            "11 ids + 1 all_mask + 1 states + 1 q + 2 k + 6 inner + 1 conv + 13 ssm_heads",
        ),
        "host/all/scores": (
            "1 ids + 1 logits + 19 all_v_ids + 5 q",
            "5 embd + 1 all_mask + 1 q + 1 scores",
            "4 ids + 1 embd + 1 all_mask + 4 ff",
            "3 ids + 5 embd + 1 all_mask + 4 all_v_ids + 1 states + 7 conv_states + 3 q + 3 inner + 1 conv + 7 ssm_heads",
        ),
        "host/all/scores-rotated": (
            "8 ids + 4 embd + 7 conv_states + 3 q + 3 ff + 51 ssm_heads",
            "12 ids + 6 embd + 1 all_mask + 1 scores",
            "5 ids + 4 embd + 2 rotation + 1 all_mask + 1 states + 1 conv_states + 2 q + 3 inner + 2 conv + 2 ssm_heads",
            "94 ids + 6 output_rows + 3 all_mask + 1 all_v_ids + 7 q + 2 ff + 2 conv + 5 ssm_heads",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("6 ids + 2 embd + 1 rotation + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/none/scores-rotated": ("4 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": (
            "6 ids + 3 embd + 1 all_mask + 1 q + 3 ff",
            "6 ids + 3 embd + 1 all_mask + 1 states + 2 conv_states + 1 q + 1 k + 4 inner + 1 conv + 17 ssm_heads",
            "7 embd + 1 all_mask + 1 states + 2 inner + 41 ssm_heads",
        ),
        "host/some/flash-rotated": (
            "4 embd + 1 all_mask + 8 conv_states + 3 ff",
            "2 embd + 1 all_mask + 1 states + 11 conv_states + 2 q + 3 k + 1 ff + 2 conv + 33 ssm_heads",
            "3 embd + 1 all_mask + 1 states + 6 inner",
        ),
        "host/some/scores": (
            "21 ids + 4 embd + 1 all_mask + 4 all_v_ids + 1 states + 3 inner + 2 conv + 2 ssm_heads",
            "4 ids + 3 embd + 2 all_mask + 2 q + 3 ff + 1 ssm_heads",
            "12 ids + 3 embd + 1 all_mask + 2 q + 1 scores + 53 ssm_heads",
        ),
        "host/some/scores-rotated": (
            "5 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "4 ids + 4 embd + 1 all_mask + 7 all_v_ids + 1 states + 2 inner + 2 conv + 45 ssm_heads",
            "29 ids + 4 embd + 1 all_mask + 1 conv_states + 1 q + 3 ff + 9 ssm_heads",
        ),
    },
    "gemma2": {
        "device/all/flash": (
            "7 ids + 2 embd + 1 output_rows + 1 all_mask + 1 all_mask_window + 1 k + 3 ff",
            "9 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 q",
        ),
        "device/all/flash-rotated": (
            "9 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 3 ff",
            "1 embd + 1 logits + 3 rotation + 2 all_mask_window + 2 k",
            "9 ids + 3 embd + 2 rotation + 2 all_mask_window + 2 q",
        ),
        "device/all/scores": (
            "5 ids + 2 embd + 4 all_mask_window + 1 all_v_ids + 3 ff",
            "5 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "2 embd + 3 output_rows + 2 all_mask + 2 all_v_ids + 3 ff",
        ),
        "device/all/scores-rotated": (
            "71 ids + 7 embd + 11 output_rows + 1 all_mask + 4 all_mask_window + 1 all_v_ids",
            "9 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "5 ids + 2 embd + 1 rotation + 2 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
        ),
        "device/last/flash": (
            "5 ids + 2 embd + 1 all_mask_window + 2 q",
            "122 ids + 6 output_rows",
            "5 ids + 2 embd + 1 all_mask_window + 3 k",
        ),
        "device/last/flash-rotated": (
            "5 ids + 2 embd + 1 rotation + 1 all_mask_window + 3 k",
            "54 ids + 1 logits + 5 output_rows + 2 rotation + 5 k",
            "5 ids + 2 embd + 1 rotation + 1 all_mask_window + 2 q",
        ),
        "device/last/scores": (
            "2 embd + 1 output_rows + 1 all_mask_window + 1 all_v_ids + 2 q + 1 scores_window",
        ),
        "device/last/scores-rotated": (
            "11 output_rows + 2 rotation",
            "3 ids + 2 embd + 1 rotation + 1 all_mask_window + 2 all_v_ids + 1 q",
            "93 ids + 2 embd + 1 all_mask_window + 1 all_v_ids + 1 q + 1 scores_window",
            "1 embd + 1 logits",
        ),
        "device/output/flash": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/flash-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/some/flash": (
            "9 ids + 2 embd + 1 all_mask + 1 all_mask_window + 3 ff",
            "1 logits + 2 q",
            "3 embd + 1 all_mask + 1 all_mask_window + 2 q",
        ),
        "device/some/flash-rotated": (
            "3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 q",
            "9 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 3 ff",
            "80 ids + 1 logits + 2 output_rows + 5 k",
        ),
        "device/some/scores": (
            "5 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "5 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "2 logits + 4 output_rows + 3 all_mask + 1 all_mask_window + 1 ff",
        ),
        "device/some/scores-rotated": (
            "5 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "198 ids + 5 embd + 4 rotation + 3 all_mask_window + 2 q",
            "5 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
        ),
        "host/all/flash": (
            "1 all_mask + 1 k + 4 ff",
            "12 ids + 3 embd + 3 output_rows + 1 all_mask + 1 all_mask_window + 3 ff",
            "4 embd + 6 output_rows + 1 all_mask + 1 all_mask_window + 2 q",
        ),
        "host/all/flash-rotated": (
            "10 ids + 4 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 q",
            "26 ids + 4 embd + 1 all_mask + 3 ff",
            "3 embd + 2 rotation + 1 all_mask + 2 all_mask_window + 3 ff",
        ),
        "host/all/scores": (
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "234 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "1 ids + 1 logits + 2 all_v_ids + 2 q",
        ),
        "host/all/scores-rotated": (
            "227 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
        ),
        "host/none/flash": ("10 ids + 2 embd + 1 all_mask + 1 all_mask_window",),
        "host/none/flash-rotated": (
            "10 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window",
        ),
        "host/none/scores": ("6 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids",),
        "host/none/scores-rotated": (
            "6 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids",
        ),
        "host/some/flash": (
            "10 ids + 3 embd + 1 all_mask + 2 all_mask_window + 3 ff",
            "1 all_mask + 1 all_mask_window + 1 q + 2 k + 3 ff",
            "4 embd + 1 all_mask_window + 2 q + 1 mask",
        ),
        "host/some/flash-rotated": (
            "232 ids + 3 embd + 3 rotation + 2 all_mask_window + 1 q + 2 ff",
            "8 ids + 3 embd + 1 output_rows + 2 rotation + 1 all_mask + 1 all_mask_window + 2 q",
            "10 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 k + 3 ff",
        ),
        "host/some/scores": (
            "257 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores_window",
        ),
        "host/some/scores-rotated": (
            "210 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "46 ids + 4 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 1 all_v_ids + 1 q + 1 scores_window",
        ),
    },
    "gemma3": {
        "device/all/flash": (
            "8 ids + 2 embd + 1 output_rows + 1 all_mask + 1 all_mask_window + 1 k + 3 ff",
            "9 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 q",
        ),
        "device/all/flash-rotated": (
            "9 ids + 3 embd + 2 rotation + 2 all_mask_window + 2 q",
            "32 ids + 2 embd + 1 logits + 1 output_rows + 6 rotation + 1 all_mask_window",
            "9 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 3 ff",
        ),
        "device/all/scores": (
            "5 ids + 2 embd + 2 all_mask_window + 3 all_v_ids + 3 ff",
            "5 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
        ),
        "device/all/scores-rotated": (
            "191 ids + 7 embd + 10 output_rows + 2 rotation + 4 all_mask + 2 all_mask_window",
            "2 embd + 1 output_rows + 1 rotation + 3 all_mask + 1 all_v_ids + 3 ff",
            "5 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "5 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
        ),
        "device/last/flash": (
            "5 ids + 2 embd + 1 all_mask_window + 1 q + 2 k",
            "134 ids + 6 output_rows",
            "5 ids + 2 embd + 1 all_mask_window + 2 q",
        ),
        "device/last/flash-rotated": (
            "5 ids + 2 embd + 1 rotation + 1 all_mask_window + 2 q",
            "5 ids + 2 embd + 1 rotation + 1 all_mask_window + 1 q + 2 k",
            "54 ids + 1 logits + 5 output_rows + 2 rotation + 5 k",
        ),
        "device/last/scores": (
            "2 embd + 1 output_rows + 1 all_mask_window + 1 all_v_ids + 2 q + 1 scores_window",
        ),
        "device/last/scores-rotated": (
            "1 embd + 1 logits",
            "3 ids + 2 embd + 1 rotation + 1 all_mask_window + 1 all_v_ids + 1 q + 1 scores_window",
            "132 ids + 2 embd + 9 output_rows + 1 rotation + 1 all_mask_window",
            "3 ids + 2 embd + 1 rotation + 1 all_mask_window + 2 all_v_ids + 1 q",
        ),
        "device/output/flash": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/flash-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/some/flash": (
            "9 ids + 2 embd + 1 all_mask_window + 3 ff + 1 mask",
            "3 embd + 1 all_mask_window + 2 q + 1 mask",
            "105 ids + 1 logits + 1 all_mask_window + 1 q + 2 k",
        ),
        "device/some/flash-rotated": (
            "201 ids + 6 embd + 4 output_rows + 2 rotation + 1 all_mask_window + 1 mask",
            "9 ids + 2 embd + 2 rotation + 1 all_mask_window + 2 q + 1 mask",
            "9 ids + 2 embd + 2 rotation + 1 all_mask_window + 3 ff + 1 mask",
            "1 logits + 6 k + 1 mask",
        ),
        "device/some/scores": (
            "3 ids + 2 embd + 1 all_mask_window + 1 all_v_ids + 2 q + 1 mask + 1 scores_window",
            "3 ids + 2 embd + 1 all_mask_window + 1 all_v_ids + 3 ff + 2 mask",
            "5 ids + 2 embd + 1 all_mask_window + 2 all_v_ids + 2 q + 1 mask + 1 scores",
        ),
        "device/some/scores-rotated": (
            "2 embd + 4 rotation + 1 all_mask_window + 2 all_v_ids + 1 q + 1 mask + 1 scores",
            "3 ids + 3 embd + 1 rotation + 1 all_mask_window + 1 all_v_ids + 1 q + 1 mask + 1 scores_window",
            "67 ids + 3 embd + 2 all_v_ids + 3 ff + 2 mask",
        ),
        "host/all/flash": (
            "4 embd + 1 all_mask + 1 all_mask_window + 2 q",
            "110 ids + 3 embd + 8 output_rows + 1 all_mask + 1 all_mask_window + 3 ff",
        ),
        "host/all/flash-rotated": (
            "81 ids + 4 embd + 13 output_rows + 1 all_mask + 1 all_mask_window + 2 q",
            "32 ids + 3 embd + 2 output_rows + 2 rotation + 1 all_mask + 1 all_mask_window + 3 ff",
            "4 rotation + 1 all_mask_window + 1 k + 4 ff",
        ),
        "host/all/scores": (
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 3 all_v_ids + 3 ff",
            "4 ids + 8 embd + 1 logits + 1 output_rows",
        ),
        "host/all/scores-rotated": (
            "7 ids + 7 embd + 3 output_rows + 6 rotation + 2 all_mask_window + 2 ff",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "71 ids + 3 embd + 1 output_rows + 4 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
        ),
        "host/none/flash": ("10 ids + 2 embd + 1 all_mask + 1 all_mask_window",),
        "host/none/flash-rotated": (
            "10 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window",
        ),
        "host/none/scores": ("6 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids",),
        "host/none/scores-rotated": (
            "6 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids",
        ),
        "host/some/flash": (
            "10 ids + 3 embd + 1 all_mask + 2 all_mask_window + 3 ff",
            "4 embd + 1 all_mask_window + 2 q + 1 mask",
        ),
        "host/some/flash-rotated": (
            "126 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 3 ff",
            "10 ids + 2 rotation + 1 all_mask + 1 all_mask_window + 1 k + 4 ff",
            "10 ids + 4 embd + 2 rotation + 1 all_mask_window + 2 q + 1 mask",
        ),
        "host/some/scores": (
            "6 ids + 3 embd + 1 all_mask_window + 2 all_v_ids + 2 q + 1 mask + 1 scores",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 3 ff",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores_window",
        ),
        "host/some/scores-rotated": (
            "4 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 ff",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores_window",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "7 embd + 4 output_rows + 6 rotation + 2 all_mask_window + 1 mask",
        ),
    },
    "gpt-oss": {
        "device/all/flash": (
            "9 ids + 2 embd + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff",
            "9 ids + 1 all_mask + 1 all_mask_window + 1 q + 2 expert_out",
        ),
        "device/all/flash-rotated": (
            "10 ids + 2 embd + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff + 4 router",
            "3 embd + 1 logits",
            "88 ids + 9 rotation + 2 all_mask_window + 1 q + 2 expert_out + 1 router",
        ),
        "device/all/scores": (
            "5 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "2 logits + 1 expert_ff + 2 expert_out + 8 router",
            "5 ids + 2 all_mask + 2 all_mask_window + 2 all_v_ids + 3 expert_ff + 2 router",
            "1 logits + 2 q + 2 expert_ff + 1 expert_out",
        ),
        "device/all/scores-rotated": (
            "5 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "2 embd + 12 output_rows + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 expert_ff + 8 router",
            "6 embd + 1 logits + 2 q + 1 expert_out",
            "5 ids + 6 embd + 2 rotation + 8 all_v_ids + 2 q",
        ),
        "device/last/flash": (
            "2 embd + 1 logits",
            "232 ids + 1 output_rows + 1 q + 3 expert_ff + 1 expert_out",
            "7 ids + 1 embd + 1 all_mask_window + 2 expert_out",
        ),
        "device/last/flash-rotated": (
            "7 ids + 1 embd + 1 rotation + 1 all_mask_window + 2 expert_out",
            "1 embd + 1 logits + 1 expert_out",
            "1 embd + 3 rotation + 4 expert_ff",
        ),
        "device/last/scores": (
            "1 embd + 2 output_rows + 1 all_v_ids + 2 expert_out + 24 router",
            "7 ids + 2 embd + 1 all_mask_window + 1 all_v_ids + 1 expert_out + 1 scores_window",
            "5 ids + 1 embd + 4 output_rows + 3 expert_ff + 1 expert_out + 15 router",
            "2 embd + 1 logits",
        ),
        "device/last/scores-rotated": (
            "1 embd + 1 output_rows + 8 rotation + 1 all_v_ids + 3 expert_ff + 1 expert_out + 6 router",
            "2 embd + 5 output_rows + 1 all_mask_window + 1 all_v_ids + 1 expert_out + 1 scores_window",
        ),
        "device/output/flash": ("6 embd + 2 output_rows",),
        "device/output/flash-rotated": ("128 ids + 6 embd + 1 logits + 1 all_mask_window",),
        "device/output/scores": ("1 ids + 4 embd + 1 logits + 1 output_rows + 6 all_v_ids",),
        "device/output/scores-rotated": ("4 embd + 1 logits + 2 all_v_ids",),
        "device/some/flash": (
            "13 ids + 1 all_mask + 2 expert_ff + 2 expert_out + 13 router",
            "13 ids + 1 embd + 1 all_mask + 1 all_mask_window + 3 expert_ff + 1 expert_out",
            "1 logits + 3 all_mask_window + 2 k + 1 expert_ff + 8 router",
        ),
        "device/some/flash-rotated": (
            "1 embd + 2 output_rows + 9 rotation + 2 all_mask_window + 1 k + 2 expert_out + 6 router",
            "13 ids + 1 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 3 expert_ff + 1 expert_out",
        ),
        "device/some/scores": (
            "41 ids + 3 output_rows + 2 all_v_ids + 4 expert_ff + 17 router",
            "207 ids + 5 output_rows + 1 all_mask + 5 all_mask_window + 14 all_v_ids + 1 expert_out + 14 router",
            "8 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 expert_out + 1 scores",
            "1 ids + 2 embd + 2 output_rows + 5 all_mask_window + 1 expert_ff + 1 expert_out",
        ),
        "device/some/scores-rotated": (
            "9 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 expert_out + 1 scores",
            "25 ids + 2 embd + 1 all_mask + 3 expert_ff + 1 expert_out + 8 router",
        ),
        "host/all/flash": (
            "4 ids + 1 embd + 3 output_rows + 1 all_mask + 1 all_mask_window + 1 q + 2 expert_out",
            "10 ids + 3 embd + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff",
        ),
        "host/all/flash-rotated": (
            "135 ids + 1 embd + 5 rotation + 1 all_mask + 1 all_mask_window + 2 expert_out + 16 router",
            "10 ids + 2 rotation + 2 all_mask_window + 4 q + 12 k",
            "3 embd + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff + 5 router",
        ),
        "host/all/scores": (
            "134 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 3 expert_ff + 7 router",
            "2 embd + 1 all_mask + 1 expert_out + 1 scores_window",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "6 ids + 1 all_mask + 1 all_mask_window + 1 all_v_ids + 2 expert_ff + 1 expert_out",
        ),
        "host/all/scores-rotated": (
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
            "6 ids + 5 embd + 28 output_rows + 22 rotation + 2 all_mask + 4 q + 1 expert_out",
            "6 ids + 4 embd + 10 output_rows + 2 all_mask + 7 all_mask_window + 1 all_v_ids + 6 q + 15 router",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 3 expert_ff",
        ),
        "host/none/flash": ("10 ids + 2 embd + 1 all_mask + 1 all_mask_window",),
        "host/none/flash-rotated": (
            "10 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window",
        ),
        "host/none/scores": ("6 ids + 2 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids",),
        "host/none/scores-rotated": (
            "6 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids",
        ),
        "host/some/flash": (
            "10 ids + 3 embd + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff",
            "11 ids + 1 embd + 1 all_mask + 1 all_mask_window + 1 q + 2 expert_out",
        ),
        "host/some/flash-rotated": (
            "76 ids + 1 embd + 1 output_rows + 13 rotation + 1 all_mask + 1 all_mask_window + 2 expert_out",
            "21 ids + 3 embd + 1 output_rows + 1 all_mask_window + 1 expert_ff + 1 expert_out + 2 router + 1 mask",
            "3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 1 q + 3 expert_ff + 1 router",
            "10 ids + 1 embd + 2 rotation + 3 all_mask_window + 2 q + 3 k + 1 expert_out + 14 router",
        ),
        "host/some/scores": (
            "3 embd + 1 all_mask + 1 expert_ff + 18 router + 1 scores_window",
            "6 ids + 3 embd + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 2 q + 1 scores",
            "164 ids + 2 embd + 1 all_mask + 1 all_mask_window + 5 all_v_ids + 3 expert_ff + 11 router",
            "2 all_mask_window + 5 all_v_ids + 2 expert_out + 32 router",
        ),
        "host/some/scores-rotated": (
            "70 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_mask_window + 3 all_v_ids + 3 expert_ff",
            "1 embd + 4 all_mask_window + 1 all_v_ids + 2 expert_out + 17 router",
            "150 ids + 3 embd + 8 rotation + 1 all_mask + 1 all_mask_window + 1 all_v_ids + 1 q + 4 router + 1 scores_window",
            "6 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_mask_window + 2 all_v_ids + 1 q + 1 scores",
        ),
    },
    "llama": {
        "device/all/flash": (
            "5 ids + 3 embd + 1 all_mask + 3 ff + 3 expert_ff",
            "1 logits + 2 k + 2 expert_ff + 1 expert_out",
        ),
        "device/all/flash-rotated": (
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 3 ff + 3 expert_ff + 2 router",
        ),
        "device/all/scores": (
            "3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "1 ids + 2 embd + 1 output_rows + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 2 router",
        ),
        "device/all/scores-rotated": (
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 2 router",
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "device/last/flash": (
            "5 ids + 1 embd + 1 all_mask + 4 k + 1 expert_out",
            "5 ids + 4 embd + 1 all_mask",
            "250 ids + 3 embd + 8 output_rows",
        ),
        "device/last/flash-rotated": (
            "5 ids + 4 embd + 1 rotation + 1 all_mask",
            "5 ids + 3 embd + 1 rotation + 1 all_mask + 2 k + 12 router",
            "11 ids + 2 embd + 1 rotation + 1 all_mask + 1 expert_out",
            "1 embd + 1 logits + 12 router",
        ),
        "device/last/scores": ("3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 8 router + 1 scores",),
        "device/last/scores-rotated": (
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 expert_out + 1 scores",
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
            "8 output_rows + 10 rotation + 1 all_mask + 1 ff",
        ),
        "device/output/flash": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/flash-rotated": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/output/scores": (
            "8 ids + 2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/output/scores-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/some/flash": (
            "3 ids + 1 embd + 2 output_rows + 1 all_mask + 3 ff + 3 expert_ff + 1 expert_out",
            "1 logits + 1 output_rows",
            "5 ids + 2 embd + 1 all_mask + 3 ff",
        ),
        "device/some/flash-rotated": (
            "1 embd + 1 logits + 1 rotation + 1 all_mask + 3 expert_ff + 1 expert_out",
            "22 ids + 1 embd + 2 output_rows + 1 k + 3 ff",
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 3 ff",
        ),
        "device/some/scores": (
            "155 ids + 55 output_rows + 1 all_mask + 1 all_v_ids + 3 expert_ff + 1 expert_out",
            "3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 16 router + 1 scores",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 6 router",
            "2 embd + 1 all_mask + 3 all_v_ids + 3 expert_ff + 1 router",
        ),
        "device/some/scores-rotated": (
            "1 logits + 16 rotation + 1 expert_ff + 2 router",
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 120 router + 1 scores",
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 16 router",
            "12 ids + 2 embd + 2 output_rows + 1 rotation + 1 all_mask + 3 all_v_ids + 2 expert_ff + 2 expert_out",
        ),
        "host/all/flash": ("6 ids + 4 embd + 1 all_mask + 3 ff + 3 expert_ff",),
        "host/all/flash-rotated": (
            "6 ids + 3 embd + 1 rotation + 1 all_mask + 3 ff + 3 expert_ff + 2 router",
            "3 embd + 1 logits + 1 rotation + 2 k + 1 ff",
        ),
        "host/all/scores": (
            "1 embd + 16 output_rows + 1 all_mask + 4 all_v_ids + 1 ff + 3 expert_ff",
            "4 ids + 5 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "8 ids + 3 embd + 14 output_rows + 1 all_v_ids + 3 ff + 2 expert_ff + 3 expert_out",
        ),
        "host/all/scores-rotated": (
            "4 ids + 4 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 2 router",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("6 ids + 2 embd + 1 rotation + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/none/scores-rotated": ("4 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": ("6 ids + 4 embd + 1 all_mask + 3 ff + 3 expert_ff",),
        "host/some/flash-rotated": (
            "6 ids + 3 embd + 1 rotation + 1 all_mask + 3 ff + 3 expert_ff + 2 router",
        ),
        "host/some/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 2 router",
            "4 ids + 5 embd + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "host/some/scores-rotated": (
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff + 3 expert_ff + 2 router",
            "4 ids + 4 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
    },
    "mamba": {
        "device/all/flash": (
            "12 embd + 1 states + 2 conv_states",
            "1 ids + 2 embd + 1 logits",
        ),
        "device/all/scores": (
            "12 embd + 1 states + 2 conv_states",
            "1 ids + 1 logits + 2 output_rows",
        ),
        "device/last/flash": (
            "12 embd + 1 states + 1 conv_states",
            "1 ids + 3 embd + 1 logits",
        ),
        "device/last/scores": (
            "12 embd + 1 states + 1 conv_states",
            "1 ids + 3 embd + 1 logits",
        ),
        "device/output/flash": (
            "1 logits + 3 output_rows",
            "2 embd + 1 output_rows",
        ),
        "device/output/scores": (
            "2 embd + 1 output_rows",
            "1 logits + 1 output_rows + 1 conv_states",
        ),
        "device/some/flash": (
            "13 embd + 1 states + 1 conv_states",
            "1 ids + 3 embd + 1 logits",
        ),
        "device/some/scores": (
            "13 embd + 1 states + 1 conv_states",
            "1 ids + 3 embd + 1 logits",
        ),
        "host/all/flash": ("1 ids + 13 embd + 1 states + 2 conv_states",),
        "host/all/scores": (
            "1 ids + 13 embd + 1 states + 2 conv_states",
            "2 ids + 3 embd + 1 logits",
        ),
        "host/none/flash": ("1 ids + 2 embd",),
        "host/none/scores": ("1 ids + 2 embd",),
        "host/some/flash": ("1 ids + 13 embd + 1 states + 2 conv_states",),
        "host/some/scores": ("1 ids + 13 embd + 1 states + 2 conv_states",),
    },
    "mamba2": {
        "device/all/flash": (
            "17 ids + 8 embd + 1 states + 2 conv_states + 3 conv",
            "1 ids + 2 embd + 1 logits",
        ),
        "device/all/scores": ("32 ids + 8 embd + 1 states + 2 conv_states + 3 conv",),
        "device/last/flash": (
            "1 ids + 3 embd + 1 logits",
            "62 ids + 8 embd + 1 states + 1 conv_states + 2 conv",
        ),
        "device/last/scores": (
            "96 ids + 8 embd + 4 output_rows + 1 states + 2 conv",
            "1 ids + 1 logits + 3 output_rows",
        ),
        "device/output/flash": (
            "2 embd + 1 output_rows",
            "1 ids + 1 logits + 3 output_rows",
        ),
        "device/output/scores": (
            "2 embd + 1 output_rows",
            "1 ids + 1 logits + 3 output_rows",
        ),
        "device/some/flash": (
            "3 embd + 1 logits",
            "16 embd",
            "112 ids + 10 embd + 1 states + 6 conv_states + 1 conv",
        ),
        "device/some/scores": (
            "15 embd",
            "1 ids + 3 embd + 1 logits",
            "8 embd + 1 states + 4 conv_states + 2 conv",
        ),
        "host/all/flash": (
            "2 ids + 3 embd + 1 logits",
            "33 ids + 5 embd + 1 states + 2 conv_states + 4 conv",
        ),
        "host/all/scores": ("33 ids + 5 embd + 1 states + 2 conv_states + 4 conv",),
        "host/none/flash": ("1 ids + 2 embd",),
        "host/none/scores": ("1 ids + 2 embd",),
        "host/some/flash": ("17 ids + 5 embd + 1 states + 2 conv_states + 4 conv",),
        "host/some/scores": ("17 ids + 5 embd + 1 states + 2 conv_states + 4 conv",),
    },
    "nomic-bert": {
        "device/all/flash": (
            "468 ids + 6 embd + 1 all_mask",
            "7 ids + 2 embd + 1 all_mask + 3 ff",
            "6 embd + 3 all_mask",
        ),
        "device/all/scores": (
            "5 ids + 7 embd + 1 all_mask + 1 scores",
            "9 ids + 2 embd + 1 all_mask + 3 ff",
        ),
        "device/last/flash": (
            "3 ids + 1 embd + 1 all_mask + 3 ff",
            "6 ids + 6 embd + 3 all_mask",
        ),
        "device/last/scores": (
            "3 ids + 7 embd + 1 all_mask + 1 scores",
            "4 ids + 1 embd + 1 all_mask + 3 ff",
        ),
        "device/output/flash": ("",),
        "device/output/scores": ("",),
        "device/some/flash": (
            "3 ids + 2 embd + 1 all_mask + 3 ff",
            "6 ids + 6 embd + 3 all_mask",
        ),
        "device/some/scores": (
            "4 ids + 2 embd + 1 all_mask + 3 ff",
            "3 ids + 7 embd + 1 all_mask + 1 scores",
        ),
        "host/all/flash": (
            "350 ids + 7 embd + 2 all_mask",
            "5 ids + 3 embd + 1 all_mask + 3 ff",
        ),
        "host/all/scores": (
            "5 ids + 3 embd + 1 all_mask + 3 ff",
            "4 ids + 8 embd + 1 all_mask + 1 scores",
        ),
        "host/none/flash": ("4 ids + 2 embd + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask",),
        "host/some/flash": (
            "4 ids + 3 embd + 1 all_mask + 3 ff",
            "7 ids + 7 embd + 3 all_mask",
        ),
        "host/some/scores": (
            "4 ids + 8 embd + 1 all_mask + 1 scores",
            "5 ids + 3 embd + 1 all_mask + 3 ff",
        ),
    },
    "phi3": {
        "device/all/flash": (
            "5 ids + 5 embd + 1 all_mask + 1 ff",
            "2 embd + 1 logits",
            "2 embd + 1 output_rows + 1 all_mask + 3 ff",
        ),
        "device/all/scores": (
            "68 ids + 2 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
        "device/last/flash": (
            "344 ids + 2 embd + 9 output_rows + 1 all_mask",
            "2 embd + 1 logits + 1 output_rows",
            "5 ids + 3 embd + 1 all_mask + 3 k",
        ),
        "device/last/scores": (
            "2 embd + 1 logits + 1 output_rows",
            "2 embd + 5 output_rows + 1 all_mask + 3 all_v_ids",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "device/output/flash": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/output/scores": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/some/flash": (
            "134 ids + 3 embd + 1 logits",
            "5 ids + 2 embd + 1 all_mask + 3 ff",
            "5 ids + 4 embd + 1 all_mask + 1 k + 1 ff",
            "106 ids + 3 embd + 5 output_rows + 1 ff",
        ),
        "device/some/scores": (
            "2 embd + 1 output_rows + 1 all_mask + 1 all_v_ids + 3 ff",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "host/all/flash": (
            "6 ids + 3 embd + 1 all_mask + 3 ff",
            "6 ids + 5 embd + 1 all_mask + 1 k + 1 ff",
        ),
        "host/all/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": (
            "6 ids + 3 embd + 1 all_mask + 3 ff",
            "6 ids + 6 embd + 1 all_mask + 1 ff",
        ),
        "host/some/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
    },
    "qwen2": {
        "device/all/flash": ("5 ids + 3 embd + 1 all_mask + 3 ff",),
        "device/all/flash-rotated": ("5 ids + 2 embd + 1 rotation + 1 all_mask + 3 ff",),
        "device/all/scores": (
            "3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
        "device/all/scores-rotated": (
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
        "device/last/flash": (
            "5 ids + 4 embd + 1 all_mask",
            "5 ids + 3 embd + 1 all_mask + 2 k",
            "40 ids + 2 embd + 13 output_rows + 2 k",
        ),
        "device/last/flash-rotated": (
            "1 logits + 1 k",
            "5 ids + 4 embd + 1 rotation + 1 all_mask",
            "5 ids + 3 embd + 1 rotation + 1 all_mask + 2 k",
        ),
        "device/last/scores": (
            "1 embd + 1 logits",
            "3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "device/last/scores-rotated": (
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
            "1 embd + 1 logits",
            "97 ids + 17 output_rows + 1 rotation + 3 all_v_ids + 1 ff",
        ),
        "device/output/flash": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/output/flash-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores-rotated": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/some/flash": (
            "5 ids + 2 embd + 1 all_mask + 3 ff",
            "1 logits + 1 output_rows",
        ),
        "device/some/flash-rotated": (
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 3 ff",
            "70 ids + 1 embd + 2 output_rows + 1 k + 3 ff",
        ),
        "device/some/scores": (
            "3 ids + 4 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 3 ff",
            "1 logits + 1 all_v_ids",
        ),
        "device/some/scores-rotated": (
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
            "3 ids + 2 embd + 11 rotation + 1 all_mask + 3 all_v_ids + 1 ff",
            "128 ids + 1 logits + 1 all_mask + 1 all_v_ids",
            "3 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "host/all/flash": (
            "6 ids + 4 embd + 1 all_mask + 3 ff",
            "1 ids + 1 embd + 1 logits + 1 output_rows",
        ),
        "host/all/flash-rotated": (
            "6 ids + 3 embd + 1 rotation + 1 all_mask + 3 ff",
            "6 ids + 3 embd + 8 rotation + 3 k + 2 ff",
        ),
        "host/all/scores": (
            "4 ids + 4 embd + 32 output_rows + 3 ff",
            "4 ids + 5 embd + 1 all_mask + 1 all_v_ids + 1 scores",
            "4 ids + 1 embd + 2 all_mask + 1 all_v_ids + 3 ff",
        ),
        "host/all/scores-rotated": (
            "8 ids + 4 embd + 4 output_rows + 1 all_mask + 1 all_v_ids + 1 scores",
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
            "37 ids + 1 logits + 1 rotation + 2 all_mask + 2 all_v_ids + 1 ff",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("6 ids + 2 embd + 1 rotation + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/none/scores-rotated": ("4 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": ("6 ids + 4 embd + 1 all_mask + 3 ff",),
        "host/some/flash-rotated": ("6 ids + 3 embd + 1 rotation + 1 all_mask + 3 ff",),
        "host/some/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 3 ff",
            "4 ids + 5 embd + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
        "host/some/scores-rotated": (
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
            "4 ids + 4 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 scores",
        ),
    },
    "qwen3": {
        "device/all/flash": (
            "5 ids + 2 embd + 1 all_mask + 1 q + 3 ff",
            "4 output_rows + 3 k + 3 ff",
        ),
        "device/all/flash-rotated": (
            "1 embd + 1 logits",
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 2 k + 3 ff",
        ),
        "device/all/scores": (
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "3 embd + 1 logits",
            "4 ids + 1 embd + 1 all_mask + 3 all_v_ids + 3 ff",
        ),
        "device/all/scores-rotated": (
            "238 ids + 2 embd + 2 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "3 ids + 3 embd + 1 rotation + 2 all_mask + 1 all_v_ids + 2 q",
        ),
        "device/last/flash": (
            "5 ids + 2 embd + 1 all_mask + 2 q",
            "1 embd + 1 logits",
            "5 ids + 2 embd + 1 all_mask + 3 k",
            "5 output_rows + 1 all_mask + 6 k",
        ),
        "device/last/flash-rotated": (
            "69 ids + 1 logits + 5 output_rows + 3 rotation + 1 all_mask + 1 k",
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 2 q",
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 1 q + 2 k",
            "5 ids + 1 rotation + 1 all_mask + 2 q + 2 k",
        ),
        "device/last/scores": (
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "1 logits + 1 output_rows + 4 all_v_ids + 2 q",
        ),
        "device/last/scores-rotated": (
            "1 logits + 1 all_mask",
            "4 ids + 9 output_rows + 2 q",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
        ),
        "device/output/flash": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/flash-rotated": (
            "1 logits + 1 output_rows",
            "2 output_rows",
        ),
        "device/output/scores": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/output/scores-rotated": (
            "2 output_rows",
            "1 logits + 1 output_rows",
        ),
        "device/some/flash": (
            "5 ids + 2 embd + 1 all_mask + 3 ff",
            "2 ids + 1 logits + 1 all_mask + 6 k",
        ),
        "device/some/flash-rotated": (
            "1 logits + 2 rotation + 3 k",
            "22 ids + 2 embd + 10 output_rows + 7 rotation",
            "22 ids + 9 rotation + 1 all_mask + 3 ff",
            "5 ids + 2 embd + 1 rotation + 1 all_mask + 3 ff",
        ),
        "device/some/scores": (
            "230 ids + 2 embd + 1 output_rows + 1 all_mask + 1 all_v_ids + 3 ff",
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
        ),
        "device/some/scores-rotated": (
            "1 embd + 1 logits + 16 rotation + 2 all_v_ids",
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "19 ids + 1 all_mask + 1 all_v_ids + 4 ff",
        ),
        "host/all/flash": (
            "6 ids + 2 embd + 1 all_mask + 1 q + 3 ff",
            "1 output_rows + 1 all_mask + 1 k + 4 ff",
        ),
        "host/all/flash-rotated": (
            "2 rotation + 1 all_mask + 4 ff",
            "6 ids + 2 embd + 1 rotation + 1 all_mask + 2 k + 3 ff",
            "5 embd + 1 logits + 3 k",
            "116 ids + 2 embd + 2 output_rows + 1 k + 3 ff",
        ),
        "host/all/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 1 q + 3 ff",
        ),
        "host/all/scores-rotated": (
            "5 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "1 ids + 1 logits + 4 rotation + 4 all_v_ids",
            "162 ids + 3 embd + 1 output_rows + 1 all_mask + 1 all_v_ids + 3 ff",
            "69 ids + 3 embd + 3 output_rows + 4 rotation + 1 all_mask + 2 ff",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("6 ids + 2 embd + 1 rotation + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/none/scores-rotated": ("4 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": ("6 ids + 3 embd + 1 all_mask + 1 k + 3 ff",),
        "host/some/flash-rotated": (
            "130 ids + 2 rotation + 1 all_mask + 4 ff",
            "6 ids + 2 embd + 1 rotation + 1 all_mask + 2 k + 3 ff",
        ),
        "host/some/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "130 ids + 3 embd + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
        "host/some/scores-rotated": (
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "4 ids + 3 embd + 2 rotation + 1 all_mask + 1 all_v_ids + 3 ff",
        ),
    },
    "qwen3moe": {
        "device/all/flash": (
            "5 ids + 2 embd + 1 all_mask + 1 q + 3 expert_ff",
            "1 output_rows + 1 all_mask + 3 q + 2 expert_ff + 1 expert_out",
        ),
        "device/all/flash-rotated": (
            "5 rotation + 1 all_mask + 1 q + 2 expert_out + 37 router",
            "6 output_rows + 4 rotation + 1 k + 1 expert_ff + 6 router",
            "94 ids + 2 embd + 1 output_rows + 1 rotation + 1 all_mask + 1 q + 3 expert_ff",
        ),
        "device/all/scores": (
            "3 ids + 2 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "222 ids + 1 embd + 1 all_mask + 5 all_v_ids + 3 expert_ff + 1 router",
            "3 logits + 4 q + 1 expert_ff + 1 expert_out + 6 router",
            "1 all_mask + 2 expert_out",
        ),
        "device/all/scores-rotated": (
            "3 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
            "15 ids + 2 embd + 1 logits + 8 output_rows + 13 rotation + 1 all_mask + 3 expert_ff",
            "16 ids + 2 logits + 16 output_rows + 3 rotation + 4 all_v_ids + 1 q + 2 expert_out",
            "3 ids + 1 rotation + 2 all_mask + 3 all_v_ids + 1 q + 1 expert_out",
        ),
        "device/last/flash": (
            "11 ids + 2 embd + 1 all_mask + 2 q + 1 k",
            "9 ids + 2 embd + 1 all_mask + 1 expert_out",
            "1 embd + 1 logits + 1 q",
            "7 output_rows + 2 q + 2 k",
        ),
        "device/last/flash-rotated": (
            "27 ids + 2 embd + 3 output_rows + 1 all_mask + 1 expert_out",
            "2 embd + 1 logits + 3 output_rows + 3 q",
        ),
        "device/last/scores": (
            "2 embd + 1 all_mask + 3 q + 8 router + 1 scores",
            "1 output_rows + 1 all_mask + 1 all_v_ids + 1 q + 1 expert_out + 1 scores",
            "7 ids + 2 embd + 1 all_mask + 1 all_v_ids + 1 expert_out",
        ),
        "device/last/scores-rotated": (
            "2 embd + 3 output_rows + 6 rotation + 2 q + 1 scores",
            "149 ids + 2 embd + 3 output_rows + 4 rotation + 2 all_mask + 1 expert_out",
            "1 embd + 1 output_rows + 2 rotation + 1 all_mask + 1 all_v_ids + 1 expert_out + 1 scores",
        ),
        "device/output/flash": (
            "10 output_rows",
            "4 ids + 1 logits + 2 output_rows",
        ),
        "device/output/flash-rotated": ("4 ids + 1 logits + 4 output_rows",),
        "device/output/scores": ("1 logits + 6 output_rows",),
        "device/output/scores-rotated": (
            "6 output_rows",
            "4 ids + 1 logits + 4 output_rows",
            "12 ids + 4 output_rows",
        ),
        "device/some/flash": (
            "1 embd + 1 logits",
            "11 ids + 1 all_mask + 4 k + 1 expert_ff + 2 expert_out",
            "7 ids + 1 embd + 1 all_mask + 3 expert_ff + 1 expert_out",
            "11 ids + 1 embd + 1 all_mask + 1 q + 6 k + 1 expert_ff + 1 expert_out",
        ),
        "device/some/flash-rotated": (
            "1 embd + 3 rotation + 1 all_mask + 1 q + 3 expert_ff + 1 expert_out",
            "1 embd + 1 logits",
        ),
        "device/some/scores": (
            "61 ids + 4 logits + 1 all_mask + 4 all_v_ids + 3 expert_ff + 1 expert_out + 2 router",
            "24 ids + 10 output_rows + 1 all_mask + 8 all_v_ids + 2 q + 3 expert_ff + 2 router",
            "28 ids + 1 embd + 1 output_rows + 1 all_mask + 3 all_v_ids + 1 expert_out + 3 router + 1 scores",
            "2 ids + 4 logits + 1 output_rows + 5 all_v_ids + 3 q + 1 expert_ff + 1 expert_out + 12 router",
        ),
        "device/some/scores-rotated": (
            "2 embd + 1 all_mask + 3 all_v_ids + 3 expert_ff + 1 expert_out",
            "9 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 expert_out + 1 scores",
            "2 embd + 15 rotation + 1 all_mask + 12 all_v_ids + 2 expert_ff + 12 router",
        ),
        "host/all/flash": (
            "1 all_mask + 1 q + 2 k + 1 expert_ff + 2 expert_out + 4 router",
            "3 embd + 1 output_rows + 1 all_mask + 1 q + 3 expert_ff",
        ),
        "host/all/flash-rotated": (
            "234 ids + 4 output_rows + 1 all_mask + 1 q + 4 k + 2 expert_out",
            "110 ids + 3 embd + 1 output_rows + 1 rotation + 1 all_mask + 1 q + 3 expert_ff",
        ),
        "host/all/scores": (
            "268 ids + 1 all_mask + 3 all_v_ids + 1 expert_ff + 2 expert_out",
            "110 ids + 3 embd + 6 output_rows + 1 all_mask + 1 q + 3 expert_ff",
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
        ),
        "host/all/scores-rotated": (
            "160 ids + 2 embd + 8 rotation + 1 all_mask + 5 all_v_ids + 3 expert_ff + 1 router",
            "3 embd + 3 output_rows + 26 rotation + 7 q",
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
        ),
        "host/none/flash": ("6 ids + 2 embd + 1 all_mask",),
        "host/none/flash-rotated": ("6 ids + 2 embd + 1 rotation + 1 all_mask",),
        "host/none/scores": ("4 ids + 2 embd + 1 all_mask + 1 all_v_ids",),
        "host/none/scores-rotated": ("4 ids + 2 embd + 1 rotation + 1 all_mask + 1 all_v_ids",),
        "host/some/flash": (
            "1 all_mask + 1 q + 2 k + 1 expert_ff + 2 expert_out + 8 router",
            "6 ids + 3 embd + 1 all_mask + 1 q + 3 expert_ff",
        ),
        "host/some/flash-rotated": (
            "3 embd + 2 rotation + 1 all_mask + 1 q + 3 expert_ff",
            "6 ids + 1 rotation + 1 all_mask + 1 q + 1 expert_ff + 2 expert_out + 16 router",
            "6 ids + 2 embd + 1 rotation + 1 all_mask + 1 q + 5 k + 1 expert_out + 16 router",
        ),
        "host/some/scores": (
            "4 ids + 3 embd + 1 all_mask + 1 all_v_ids + 2 q + 1 scores",
            "4 ids + 2 embd + 1 all_mask + 3 q + 1 expert_ff + 1 expert_out",
            "4 ids + 3 embd + 1 all_mask + 2 all_v_ids + 3 expert_ff",
            "2 output_rows + 1 all_mask + 2 all_v_ids + 4 q + 1 expert_ff + 1 expert_out + 10 router",
        ),
        "host/some/scores-rotated": (
            "1 q + 1 expert_ff + 2 expert_out",
            "228 ids + 3 embd + 2 rotation + 1 all_mask + 2 q + 3 expert_ff",
            "222 ids + 3 embd + 2 rotation + 2 all_mask + 5 all_v_ids + 1 expert_ff + 10 router",
            "4 ids + 3 embd + 1 rotation + 1 all_mask + 1 all_v_ids + 1 q + 1 scores",
        ),
    },
}
