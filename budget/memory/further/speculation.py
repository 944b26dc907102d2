"""Speculative decoding: the tokens that an engine drafts, and the bytes that this takes.

Figures are those of a real llama-server (`common/speculative.cpp`), seen with each kind of draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.further.option_values import given, last_count
from budget.memory.recurrent import recurrent_by_layer
from budget.memory.shape import ModelShape
from budget.memory.split import ON_HOST, device_of_layers

_WITH_A_MODEL: Final = frozenset({"draft-simple", "draft-eagle3", "draft-dflash", "draft-dspark"})
_OWN_HEAD: Final = "draft-mtp"
_MAPS: Final = frozenset({"ngram-map-k", "ngram-map-k4v"})

DRAFTED_BY_DEFAULT: Final = 3
"""Tokens that a draft model proposes at a time (common/common.h, `n_max`)."""

# Per kind: the option that bounds its drafts, and llama.cpp's default.
_DRAFTS: Final[Mapping[str, tuple[str, int]]] = {
    **dict.fromkeys((*_WITH_A_MODEL, _OWN_HEAD), ("--spec-draft-n-max", DRAFTED_BY_DEFAULT)),
    "ngram-simple": ("--spec-ngram-simple-size-m", 48),
    "ngram-map-k": ("--spec-ngram-map-k-size-m", 48),
    "ngram-map-k4v": ("--spec-ngram-map-k4v-size-m", 48),
    "ngram-mod": ("--spec-ngram-mod-n-max", 64),
    "ngram-cache": ("", 8),
}

_MOD_BYTES: Final = 16 << 20
"""The table of `ngram-mod`, shared by all slots."""
_MAP_BYTES: Final = (1 << 20) + (1 << 17)
"""The table of `ngram-map-*`, and its keys, for each slot."""
_CACHED_TOKEN_BYTES: Final = 1024
"""What `ngram-cache` keeps for a token of the context; 880 were seen."""


def draft_kinds(args: EngineArgs) -> tuple[str, ...]:
    """The kinds of drafts that the engine makes, in order. A draft model alone is `draft-simple`."""
    kinds = [
        kind
        for _, value in given(args.extra, "--spec-type")
        for kind in value.split(",")
        if kind != "none"
    ]
    if "--spec-default" in args.extra:
        kinds.append("ngram-mod")
    if args.draft_model is not None and not _WITH_A_MODEL.intersection(kinds):
        kinds += [] if _OWN_HEAD in kinds else ["draft-simple"]
    return tuple(dict.fromkeys(kinds))


def drafted_tokens(args: EngineArgs) -> int:
    """The most tokens that a slot has drafted at once; 0 without speculation."""
    return max((_drafted_by(kind, args) for kind in draft_kinds(args)), default=0)


def _drafted_by(kind: str, args: EngineArgs) -> int:
    option, default = _DRAFTS.get(kind, ("", 0))
    return last_count(args.extra, option, default=default)


def check_speculation(args: EngineArgs, shape: ModelShape) -> None:
    """Refuse drafts that llama-server would leave out with a line in its log.

    Raises:
        ConfigError: a kind needs a draft model, or layers that the model's file has not.
    """
    kinds = draft_kinds(args)
    lacking = sorted(_WITH_A_MODEL.intersection(kinds)) if args.draft_model is None else []
    if lacking:
        raise ConfigError(
            f"engine_args: --spec-type {lacking[0]} needs a draft model.",
            hint="Give its file as draft_model.",
            argument="--spec-type",
        )
    if _OWN_HEAD in kinds and not shape.n_layers_nextn:
        raise ConfigError(
            f"engine_args: --spec-type {_OWN_HEAD} needs layers that predict further tokens, and the file "
            f"of {shape.name} has none.",
            hint="Leave it out, or fetch a file that keeps them (nextn_predict_layers).",
            argument="--spec-type",
        )


def speculation_parts(
    args: EngineArgs, shape: ModelShape, parts: Mapping[str, Footprint]
) -> dict[str, Footprint]:
    """What drafts take beside the model's own `parts` and a draft model's, by device."""
    kinds = set(draft_kinds(args))
    table = _MOD_BYTES if "ngram-mod" in kinds else 0
    table += _MAP_BYTES * args.slots * len(_MAPS.intersection(kinds))
    if "ngram-cache" in kinds:
        table += _CACHED_TOKEN_BYTES * args.n_ctx
    found = {HOST: Footprint(overhead_bytes=table)} if table else {}
    if _OWN_HEAD not in kinds:
        return found
    # A second context on the same model, at most as large as the first, and the layers it computes.
    first = shape.n_layers - shape.n_layers_nextn
    own = sum(t.n_bytes for t in shape.tensors if t.layer is not None and t.layer >= first)
    places = device_of_layers(args.tensor_split, args.n_gpu_layers, shape.n_layers)[:-1]
    states = recurrent_by_layer(shape, args) * _drafted_by(_OWN_HEAD, args)
    numbers = {HOST: ON_HOST} | {name: i for i, name in enumerate(args.layer_devices)}
    for device, part in parts.items():
        weights = own if places[-1] == numbers[device] else 0
        # The recurrent state after each drafted token is kept, until it is known which ones stand.
        kept = int(states[places == numbers[device]].sum())
        again = Footprint(weights, part.kv_bytes + kept, part.compute_bytes)
        found[device] = found.get(device, Footprint()) + again
    return found
