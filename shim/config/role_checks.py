"""What a model's file has to be for the role that the configuration gives it."""

from __future__ import annotations

from typing import Final, Literal, Protocol

from backends.gguf import GgufHeader
from budget.errors import RoleViolation
from shim.config.schema.entry import ModelEntry

EVALUATOR_FLOOR_BITS: Final = 8.5
"""Bits per weight of Q8_0: a coarser evaluator would judge its own rounding errors, too."""

_VECTORS: Final = frozenset({"mean", "cls", "last"})
"""The poolings that make one vector of a text: `rank` makes a score, and `none` a vector of each token."""


class Precision(Protocol):
    """How exact a model's weights are; None for a remote model, whose file cannot be read here."""

    @property
    def quantization(self) -> str | None:
        """The main type of its tensors."""

    @property
    def min_bits_per_weight(self) -> float | None:
        """Bits per weight of its coarsest matrix."""


def too_coarse(name: str, role: str | None, found: Precision) -> RoleViolation | None:
    """The error of an evaluator under the floor, with the figures of its coarsest matrix."""
    if role != "evaluator":
        return None
    bits = found.min_bits_per_weight
    if bits is None or bits >= EVALUATOR_FLOOR_BITS:
        return None
    return RoleViolation(
        f"The evaluator {name} is {found.quantization} by its tensors: its coarsest "
        f"matrix has {bits:.4g} bits per weight, an evaluator needs at least "
        f"{EVALUATOR_FLOOR_BITS} (Q8_0).",
        hint=f"Give [models.{name}] a file of Q8_0, F16, BF16 or F32. To let it judge all the same, name "
        "it in `overrides` of `Refine`.",
        model=name,
        role="evaluator",
        quantization=found.quantization,
        bits_per_weight=bits,
        needed_bits_per_weight=EVALUATOR_FLOOR_BITS,
    )


def check_precision(name: str, role: str | None, found: Precision) -> None:
    """Refuse an evaluator under the floor.

    Raises:
        RoleViolation: as `too_coarse`.
    """
    if (violation := too_coarse(name, role, found)) is not None:
        raise violation


def role_by_file(header: GgufHeader) -> Literal["embedder", "reranker"] | None:
    """What a model is for by its file's pooling; None for one that writes."""
    pooling = header.shape().pooling
    if pooling in _VECTORS:
        return "embedder"
    return "reranker" if pooling == "rank" else None


def check_role(name: str, entry: ModelEntry, header: GgufHeader) -> None:
    """Refuse a model whose file does not meet its role.

    Raises:
        RoleViolation: an evaluator is too coarse; an embedder's file makes no vector of a text (it is a
            reranker or a chat model) and `engine_args` give no pooling that does; or a reranker's file has
            no head that makes a score.
    """
    check_precision(name, entry.role, header)
    own = header.shape().pooling
    if entry.role == "reranker" and own != "rank":
        raise RoleViolation(
            f"The reranker {name} is none by its file: its pooling is {own or 'not given'}, and a reranker "
            "needs rank.",
            hint=f"Give [models.{name}] the file of a reranking model.",
            model=name,
            role="reranker",
            pooling=own,
        )
    pooling = _pooling(entry.engine_args, own)
    if entry.role != "embedder" or pooling in _VECTORS:
        return
    kinds = {"rank": "a reranker", "none": "a model that makes a vector of each token"}
    kind = kinds.get(pooling or "", "a chat model or a base model")
    raise RoleViolation(
        f"The embedder {name} is {kind}: its pooling is {pooling or 'not given'}, and an embedder needs "
        "mean, cls or last.",
        hint=f"Give [models.{name}] the file of an embedding model, or engine_args = "
        '["--pooling", "mean"] where the model was trained for that.',
        model=name,
        role="embedder",
        pooling=pooling,
    )


def _pooling(engine_args: tuple[str, ...], own: str | None) -> str | None:
    """The pooling in effect: the last one among the arguments, else the file's own."""
    found = own
    for argument, following in zip(engine_args, (*engine_args[1:], ""), strict=False):
        option, _, value = argument.partition("=")
        if option == "--pooling":
            found = value or following
        elif option in {"--rerank", "--reranking"}:
            found = "rank"
    return found
