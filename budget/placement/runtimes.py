"""Which runtime suits a case: a table of condition -> runtime, read from the top.

Several rows can match: the first one wins, because rows are ordered by what costs most to get wrong:
what cannot run at all, then many users at once, then a device that holds everything, then splits,
then the CPU. All that matched are named in the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from budget.placement.choices import MIN_SPLIT_GAIN

Runtime = Literal[
    "llama.cpp whole",
    "llama.cpp split",
    "llama.cpp on CPU",
    "vLLM",
    "vLLM with tensor parallelism",
    "none here",
]

MANY_USERS: Final = 4
"""Requests at once from which continuous batching over paged KV pays more than a lone one loses."""

VLLM_SHARE: Final = 0.9
"""The share of a GPU that vLLM reserves."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a recommendation depends on, for one model file.

    `fits_one` and `fits_all` say whether everything fits one GPU, or all GPUs together;
    `vllm_fits_one` and `vllm_fits_all` the same for 90% of each. `fits_host` is the CPU alone,
    `fits_split` a split with the host's memory, `split_gain` its speed over the CPU alone.
    """

    users: int
    n_gpus: int
    fits_one: bool
    fits_all: bool
    vllm_fits_one: bool
    vllm_fits_all: bool
    fits_host: bool
    fits_split: bool
    split_gain: float

    @property
    def many(self) -> bool:
        """Whether there are many users."""
        return self.users >= MANY_USERS

    @property
    def fits_gpus(self) -> bool:
        """Whether the GPUs hold everything, one of them or all together."""
        return (self.n_gpus >= 1 and self.fits_one) or (self.n_gpus >= 2 and self.fits_all)

    @property
    def split_pays(self) -> bool:
        """Whether a split is possible and gains enough."""
        return self.n_gpus > 0 and self.fits_split and self.split_gain >= MIN_SPLIT_GAIN


@dataclass(frozen=True, slots=True)
class RuntimeRule:
    """One row of the table."""

    condition: str
    runtime: Runtime
    because: str
    matches: Callable[[Case], bool]


RULES: Final[tuple[RuntimeRule, ...]] = (
    RuntimeRule(
        "fits neither the GPUs nor the host's memory, nor both together",
        "none here",
        "even quantized it is too big for this machine: take fewer bits per weight or a smaller "
        "model, or name an endpoint elsewhere",
        lambda c: not (c.fits_gpus or c.fits_host or (c.n_gpus > 0 and c.fits_split)),
    ),
    RuntimeRule(
        "many users, fits 90% of one GPU",
        "vLLM",
        "continuous batching over paged KV serves many streams from one read of the weights",
        lambda c: c.many and c.n_gpus >= 1 and c.vllm_fits_one,
    ),
    RuntimeRule(
        "many users, fits 90% of several GPUs only together",
        "vLLM with tensor parallelism",
        "every GPU reads its part of each layer at the same time",
        lambda c: c.many and c.n_gpus >= 2 and c.vllm_fits_all and not c.vllm_fits_one,
    ),
    RuntimeRule(
        "fits one GPU whole",
        "llama.cpp whole",
        "a token reads every byte once, at the GPU's bandwidth; slots serve a few users",
        lambda c: c.n_gpus >= 1 and c.fits_one,
    ),
    RuntimeRule(
        "fits several GPUs only together, few users",
        "llama.cpp whole",
        "layers are spread over the GPUs; they work one after the other",
        lambda c: c.n_gpus >= 2 and c.fits_all and not c.fits_one,
    ),
    RuntimeRule(
        f"does not fit the GPUs; a split is {MIN_SPLIT_GAIN:g} times as fast as the CPU or more",
        "llama.cpp split",
        "the layers on the host bound the rate; what is on the GPU is nearly free",
        lambda c: not c.fits_gpus and c.split_pays,
    ),
    RuntimeRule(
        "no GPU, or a split gains too little; few users",
        "llama.cpp on CPU",
        "the host's memory bandwidth bounds the rate",
        lambda c: c.fits_host and not c.many,
    ),
    RuntimeRule(
        "no GPU and many users",
        "llama.cpp on CPU",
        "slots share one read of the weights, but arithmetic soon bounds them: take a small model, "
        "or an endpoint with a GPU",
        lambda c: c.fits_host and c.many,
    ),
    RuntimeRule(
        "needs GPU and host together, whatever a split gains",
        "llama.cpp split",
        "nothing else holds it",
        lambda c: c.n_gpus > 0 and c.fits_split,
    ),
)
"""In order of precedence; the last rows close the gaps."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The runtime of a case, the row that decided, and the others that matched."""

    runtime: Runtime
    rule: RuntimeRule
    also: tuple[RuntimeRule, ...]


def choose_runtime(case: Case) -> Verdict:
    """The first row that matches; every case has one (a test proves it)."""
    matched = [rule for rule in RULES if rule.matches(case)]
    return Verdict(matched[0].runtime, matched[0], tuple(matched[1:]))
