"""The planner: what wins on the figures, what is shrunk, what is said."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budget.errors import ConfigError
from budget.placement.amdahl import speed_up
from budget.placement.choices import BytePools, options_of, spread_at
from budget.placement.cost import Demand, expected_seconds
from budget.placement.planner import PlannerSettings, plan_together
from budget.placement.search import Search
from budget.placement.tables import ModelChoices, Variant
from tests.planning.support import GIB, candidate, variant

HOST = 64 * GIB


def test_amdahls_law_has_the_right_numbers() -> None:
    """At ten times: .50 1.82, .75 3.08, .90 5.26, .95 6.90; and nonsense is refused."""
    found = [round(speed_up(p, 10), 2) for p in (0.5, 0.75, 0.9, 0.95)]
    assert found == [1.82, 3.08, 5.26, 6.90]
    with pytest.raises(ConfigError):
        speed_up(1.2, 10)
    with pytest.raises(ConfigError):
        speed_up(0.5, 0)


def test_a_model_that_fits_whole_gets_the_bytes_before_a_bigger_one_that_would_be_split() -> None:
    """Both would like the 8 GiB; whole is worth more per byte, and the rest goes to the other."""
    plan = plan_together(
        [candidate("big", 14, pinned=True), candidate("small", 6, pinned=True)],
        {"host": HOST, "cuda:0": 8 * GIB},
    )
    assert plan.of("small").kind == "whole"
    assert plan.of("big").kind in {"cpu", "split"}
    assert plan.of("big").bytes_by_device.get("cuda:0", 0) <= 2 * GIB


def test_nothing_about_all_or_nothing_is_hard_coded() -> None:
    """A model that is asked for all the time is split rather than left to a rarely used one."""
    models = [
        candidate("busy", 14, rate=200.0, pinned=True),
        candidate("idle", 7, rate=0.01, pinned=True),
    ]
    plan = plan_together(models, {"host": HOST, "cuda:0": 8 * GIB})
    assert (plan.of("busy").kind, plan.of("idle").kind) == ("split", "cpu")


def test_a_split_that_gains_too_little_is_not_chosen() -> None:
    """A fifth of the layers at ten times gains 1.2; below the threshold the CPU has it all."""
    big = candidate("big", 40)
    limits = {"host": HOST, "cuda:0": 8 * GIB}
    assert (
        plan_together([big], limits, PlannerSettings(min_split_gain=1.15)).of("big").kind == "split"
    )
    refused = plan_together([big], limits, PlannerSettings(min_split_gain=1.3)).of("big")
    assert refused.kind == "cpu"
    assert "less than 1.3 times" in refused.reason


def test_a_split_says_both_rates_and_amdahls_law() -> None:
    """The answer has tokens/s either way, and the law with this split's numbers."""
    found = plan_together([candidate("m", 16)], {"host": HOST, "cuda:0": 12 * GIB}).of("m")
    assert found.kind == "split"
    assert found.tokens_per_s > 1.2 * found.cpu_tokens_per_s
    assert found.whole_tokens_per_s == pytest.approx(10 * found.cpu_tokens_per_s)
    share = found.n_gpu_layers / 33
    assert found.gain == pytest.approx(speed_up(share, 10))
    assert f"{found.gain:.2f} times, not 10.0" in found.reason


def test_a_device_that_is_no_faster_gets_nothing() -> None:
    """On an RPC device slower than the CPU, bytes free there are no reason to use them."""
    slow = ModelChoices("m", (variant(4, speeds={"RPC0": 0.7}),))
    found = plan_together([slow], {"host": HOST, "RPC0": 32 * GIB}).of("m")
    assert found.kind == "cpu"


def test_context_is_shrunk_before_a_split_and_no_further_than_needed() -> None:
    """At 8 GiB of KV the model would be split; at 4 it is whole; 2 would gain nothing."""
    sizes = tuple(
        variant(6, kv_gib=kv, n_ctx=n_ctx, cpu_token_s=0.3)
        for kv, n_ctx in ((8.0, 32768), (4.0, 16384), (2.0, 8192))
    )
    found = plan_together([ModelChoices("m", sizes)], {"host": HOST, "cuda:0": 11 * GIB}).of("m")
    assert (found.kind, found.n_ctx, found.shrunk) == ("whole", 16384, True)
    assert "context 16384 instead of 32768" in found.reason
    roomy = plan_together([ModelChoices("m", sizes)], {"host": HOST, "cuda:0": 16 * GIB}).of("m")
    assert (roomy.n_ctx, roomy.shrunk) == (32768, False)


def test_one_models_context_is_shrunk_for_another_to_be_whole() -> None:
    """Bytes are common: what the first gives up makes room for the second."""
    sizes = tuple(
        variant(4, kv_gib=kv, n_ctx=n, cpu_token_s=0.2) for kv, n in ((6.0, 32768), (1.0, 4096))
    )
    models = [ModelChoices("chatty", sizes, pinned=True), candidate("other", 5, pinned=True)]
    plan = plan_together(models, {"host": HOST, "cuda:0": 11 * GIB})
    assert [d.kind for d in plan.decisions] == ["whole", "whole"]
    assert plan.of("chatty").shrunk


@pytest.mark.parametrize(
    ("gpu_gib", "kind"), [(24, "whole"), (13, "spread"), (5, "split"), (1, "cpu")]
)
def test_several_gpus_are_used_whole_then_spread_then_split(gpu_gib: int, kind: str) -> None:
    """20 GiB on two GPUs: on one where it fits, over both where it fits only so, else split."""
    model = ModelChoices("m", (variant(20, speeds={"cuda:0": 10.0, "cuda:1": 10.0}),))
    limits = {"host": HOST, "cuda:0": gpu_gib * GIB, "cuda:1": gpu_gib * GIB}
    assert plan_together([model], limits).of("m").kind == kind


def test_a_given_number_of_layers_is_honoured() -> None:
    """The configuration's n_gpu_layers is no suggestion, and not measured against a threshold."""
    model = replace(candidate("m", 16), n_gpu_layers=3)
    found = plan_together([model], {"host": HOST, "cuda:0": 12 * GIB}).of("m")
    assert found.n_gpu_layers == 3
    assert "by the configuration" in found.reason


def test_what_fits_nowhere_is_named_and_pins_that_do_not_fit_are_an_error() -> None:
    """Other models are placed beside one that does not fit; an impossible set of pins has no placements."""
    plan = plan_together([candidate("huge", 400), candidate("m", 4)], {"host": 20 * GIB})
    assert plan.misfits == ("huge",)
    assert plan.of("m").kind == "cpu"
    with pytest.raises(ConfigError, match="pinned models do not fit together"):
        plan_together(
            [candidate("a", 12, pinned=True), candidate("b", 12, pinned=True)], {"host": 20 * GIB}
        )


def test_without_another_device_everything_is_on_the_cpu() -> None:
    """The host alone is a machine too."""
    lone = Variant(512, 1, np.array([GIB]), np.array([0]), {}, 0.05)
    found = plan_together([ModelChoices("m", (lone,))], {"host": 4 * GIB}).of("m")
    assert (found.kind, found.n_gpu_layers) == ("cpu", 0)
    assert found.tokens_per_s == pytest.approx(20)


def test_a_table_that_does_not_add_up_is_refused() -> None:
    """Rows of different lengths are a mistake, not a shorter model."""
    with pytest.raises(ConfigError, match="does not add up"):
        Variant(512, 1, np.zeros(3, dtype=np.int64), np.zeros(4, dtype=np.int64), {}, 0.1)


def load_of(count: int, **fields: float) -> Demand:
    """A load of equal models."""
    return Demand(
        np.full(count, fields.get("rate", 0.01)),
        np.ones(count),
        np.ones(count),
        np.full(count, fields.get("load_s", 2.0)),
        np.zeros(count, dtype=bool),
    )


def test_models_that_fit_together_wait_for_no_load() -> None:
    """Without contention a request takes its passes and nothing else."""
    found = expected_seconds(
        load_of(3), np.full((1, 3, 1), 2.0), np.full((1, 3), 0.5), np.array([6])
    )
    assert found == pytest.approx([0.5])


def test_models_that_take_turns_pay_for_loads_and_for_waiting() -> None:
    """Two equal models in room for one: about half of the requests load, and loads queue."""
    sizes, token_s = np.full((1, 2, 1), 1.0), np.full((1, 2), 0.5)
    found = expected_seconds(load_of(2), sizes, token_s, np.array([1.0]))
    assert found[0] == pytest.approx(0.5 + 0.5 * (2.0 + 0.5 * 0.02 * 4 / 2 / (1 - 0.02)), rel=0.01)


Drawn = list[tuple[float, float, float, bool]]
worlds = st.lists(
    st.tuples(
        st.floats(0.5, 12), st.floats(0.1, 2), st.floats(0.3, 4), st.booleans(),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


def searched(drawn: Drawn, gpu_gib: float) -> tuple[float, float]:
    """Expected seconds of what the search chose, and of the best of all assignments."""
    models = [
        ModelChoices(f"m{i}", (variant(gib, layers=8),), rate=r, load_s=s, pinned=p)
        for i, (gib, r, s, p) in enumerate(drawn)
    ]
    pools = BytePools.of({"host": HOST, "cuda:0": int(gpu_gib * GIB)})
    choices = [options_of(model, model.variants[0], pools) for model in models]
    search = Search(models, choices, pools, 0.1)
    chosen, seconds = search.run()
    pinned = [o.pool_bytes for o, m in zip(chosen, models, strict=True) if m.pinned]
    assert pools.hold([sum(row) for row in zip(*pinned, strict=True)] or [0, 0])
    everything = np.array(list(itertools.product(*(range(len(row)) for row in choices))))
    return seconds, float(search._costs(everything).min())


@settings(max_examples=20, derandomize=True, deadline=None)
@given(worlds, st.floats(4, 24))
def test_of_few_assignments_the_best_is_found(drawn: Drawn, gpu_gib: float) -> None:
    """Against brute force over every choice of up to six models; pools are never passed."""
    seconds, best = searched(drawn, gpu_gib)
    assert seconds == pytest.approx(best)


def test_of_many_assignments_one_near_the_best_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local search has no bound, so worlds are fixed: nine in ten are the best, and all are near."""
    monkeypatch.setattr("budget.placement.search._EVERYTHING", 0)
    rng = random.Random(1)
    worse = []
    for _ in range(80):
        drawn: Drawn = [
            (rng.uniform(0.5, 12), rng.uniform(0.1, 2), rng.uniform(0.3, 4), rng.random() < 0.4)
            for _ in range(5)
        ]
        seconds, best = searched(drawn, rng.uniform(4, 24))
        assert seconds >= best * (1 - 1e-9)
        worse.append(seconds / best)
    assert sum(ratio > 1.001 for ratio in worse) <= 8
    assert max(worse) <= 1.5


def test_what_stands_on_every_device_of_a_spread_is_counted_on_each() -> None:
    """Two GPUs share the layers; each has a compute buffer and a context of its own."""
    table = np.full(11, 20 * GIB)
    token_s = {"cuda:0": np.full(11, 0.01), "cuda:1": np.full(11, 0.01)}
    pools = BytePools.of({"host": HOST, "cuda:0": 12 * GIB, "cuda:1": 12 * GIB})
    for each, booked in ((0, 12 * GIB), (2 * GIB, 9 * GIB + 18 * GIB // 10 + 2 * GIB)):
        model = Variant(1, 1, table * 0, table, token_s, 0.1, each_device_bytes=each)
        assert spread_at(model, pools, 10).pool_bytes[1:] == (booked, booked)
