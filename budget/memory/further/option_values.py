"""What an engine's further arguments change of its figures: the trained context, control vectors.

The arguments are those of llama-server, as texts in command-line form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from budget.memory.shape import ModelShape

_FLOAT_BYTES = 4
_SCALES = ("--rope-scale", "--rope-freq-scale")


def given(extra: Sequence[str], *names: str) -> Iterator[tuple[str, str]]:
    """Each of these options with its value, in order; `_` counts as `-` in a long name."""
    for option, value in pairwise((*extra, "")):
        name = option.replace("_", "-") if option.startswith("--") else option
        if name in names:
            yield name, value


def last_value(extra: Sequence[str], *names: str) -> str | None:
    """The value of an option with these names that holds: the last one; None if it is not given."""
    return next((value for _, value in reversed([*given(extra, *names)])), None)


def last_count(extra: Sequence[str], *names: str, default: int) -> int:
    """The same as a number, 0 or more; the default where it is none."""
    text = last_value(extra, *names)
    return int(text) if text is not None and text.isdecimal() else default


def trained_context(extra: Sequence[str], shape: ModelShape) -> int:
    """The tokens that a slot may have; 0 where the file does not say.

    llama-server cuts a slot's context to what the model was trained for. `--override-kv` replaces that
    number (of several the first holds), and YaRN with a scale of its own stretches it
    (`llama_init_from_model`, "custom YaRN scaling detected").
    """
    trained = _overridden(extra, f"{shape.architecture}.context_length") or shape.context_length
    stretch = _stretch(extra)
    if last_value(extra, "--rope-scaling") != "yarn" or stretch is None:
        return trained
    default = shape.rope_original_context or trained
    original = last_count(extra, "--yarn-orig-ctx", default=0) or default
    return int(original * stretch)


def _stretch(extra: Sequence[str]) -> float | None:
    found = None
    for name, value in given(extra, *_SCALES):
        try:
            number = float(value)
        except ValueError:
            continue
        if number > 0:
            found = number if name == "--rope-scale" else 1 / number
    return found


def _overridden(extra: Sequence[str], key: str) -> int | None:
    for _, overrides in given(extra, "--override-kv"):
        for override in overrides.split(","):
            name, _, value = override.partition("=")
            kind, _, number = value.partition(":")
            if name == key and kind == "int" and number.isdecimal():
                return int(number)
    return None


def control_vector_bytes(extra: Sequence[str], shape: ModelShape) -> int:
    """The bytes of all control vectors together: one row of floats for each layer (`llama-adapter.cpp`)."""
    if not any(given(extra, "--control-vector", "--control-vector-scaled")):
        return 0
    return shape.n_layers * shape.n_embd * _FLOAT_BYTES
