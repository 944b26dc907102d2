"""A decision as people and programs read it: what was chosen, how fast it is, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from budget.placement.amdahl import sentence
from budget.placement.choices import BytePools, Kind, ModelOption
from budget.placement.sizes import shrink_note
from budget.placement.tables import ModelChoices, Variant


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen for one model.

    `tokens_per_s` is predicted for the choice, `cpu_tokens_per_s` for the CPU alone and
    `whole_tokens_per_s` for the best device were the model whole there (None without one).
    """

    name: str
    kind: Kind
    devices: tuple[str, ...]
    n_gpu_layers: int
    n_ctx: int
    slots: int
    bytes_by_device: dict[str, int]
    tokens_per_s: float
    cpu_tokens_per_s: float
    whole_tokens_per_s: float | None
    gain: float
    shrunk: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable data."""
        return asdict(self)


def describe(
    model: ModelChoices, level: int, option: ModelOption, pools: BytePools, min_gain: float
) -> Decision:
    """A choice with its predictions and its reason."""
    variant = model.variants[level]
    whole = min((float(s[variant.whole]) for s in variant.token_s.values()), default=None)
    amounts = zip(pools.names, option.pool_bytes, strict=True)
    return Decision(
        name=model.name,
        kind=option.kind,
        devices=option.devices,
        n_gpu_layers=option.n_gpu_layers,
        n_ctx=variant.n_ctx,
        slots=variant.slots,
        bytes_by_device={name: amount for name, amount in amounts if amount},
        tokens_per_s=1.0 / option.token_s,
        cpu_tokens_per_s=1.0 / variant.cpu_token_s,
        whole_tokens_per_s=None if whole is None else 1.0 / whole,
        gain=variant.cpu_token_s / option.token_s,
        shrunk=level > 0,
        reason=_reason(model, level, option, whole, min_gain),
    )


def _reason(
    model: ModelChoices, level: int, option: ModelOption, whole_s: float | None, min_gain: float
) -> str:
    variant = model.variants[level]
    parts = [_choice(variant, option, whole_s, min_gain)]
    if model.n_gpu_layers is not None:
        parts = [f"n_gpu_layers = {model.n_gpu_layers} by the configuration"]
    if level:
        preferred = model.variants[0]
        chosen = (variant.n_ctx, variant.slots)
        parts.append(shrink_note(chosen, (preferred.n_ctx, preferred.slots)))
    return "; ".join(parts)


def _choice(variant: Variant, option: ModelOption, whole_s: float | None, min_gain: float) -> str:
    rate, cpu_rate = 1.0 / option.token_s, 1.0 / variant.cpu_token_s
    speeds = f"{rate:.1f} tokens/s, {cpu_rate:.1f} on the CPU alone"
    if option.kind == "whole":
        return f"whole on {option.devices[0]}: {speeds}"
    if option.kind == "spread":
        return f"spread over {', '.join(option.devices)}, whole on none: {speeds}"
    if option.kind == "split":
        share, factor = _moved(variant, option, whole_s or option.token_s)
        note = f"; {sentence(share, factor)}" if factor > 1.0 else ""
        return (
            f"split, {option.n_gpu_layers} of {variant.whole} layers on {option.devices[0]}: "
            f"{speeds}, {variant.cpu_token_s / option.token_s:.2f} times as fast{note}"
        )
    if whole_s is None:
        return f"on the CPU: {rate:.1f} tokens/s; there is no other device"
    return (
        f"on the CPU: {rate:.1f} tokens/s; the device's bytes serve other models better, or a split "
        f"gains less than {min_gain:g} times (whole on a device it would be {1.0 / whole_s:.1f})"
    )


def _moved(variant: Variant, option: ModelOption, whole_s: float) -> tuple[float, float]:
    """The share of the CPU's time that moved, and how much faster it became, for Amdahl's law."""
    factor = variant.cpu_token_s / whole_s
    gain = variant.cpu_token_s / option.token_s
    if factor <= 1.0:
        return 0.0, factor
    share = (1.0 - 1.0 / gain) / (1.0 - 1.0 / factor)
    return min(max(share, 0.0), 1.0), factor
