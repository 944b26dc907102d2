"""Which KV state is saved, what goes for it, and what a slot gets back: pure decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gguf import read_header
from budget.eviction.kv_store import (
    KvFigures,
    Rate,
    SavedState,
    SlotState,
    carries_kv,
    choose_restores,
    choose_saves,
    common_prefix,
    make_room,
)
from budget.footprint import EngineArgs
from tools.shapes import write_shape

ARGS = EngineArgs(n_ctx=4096)


@pytest.mark.parametrize(
    ("name", "args", "carried"),
    [
        ("qwen2.5-0.5b", ARGS, True),
        ("deepseek2-lite", ARGS, True),
        ("gemma3-4b", ARGS, False),
        ("gpt-oss-20b", ARGS, False),
        ("gemma3-4b", replace(ARGS, swa_full=True), True),
        ("mamba-130m", ARGS, False),
        ("falcon-h1-0.5b", replace(ARGS, swa_full=True), False),
        ("bge-small", replace(ARGS, embeddings=True), False),
        ("qwen2.5-0.5b", replace(ARGS, draft_model="draft.gguf"), False),
    ],
)
def test_only_engines_whose_restored_state_is_of_use_carry_it(
    tmp_path: Path, name: str, args: EngineArgs, carried: bool
) -> None:
    """Sliding windows, recurrent state, drafts and embedders evaluate anew whatever is restored."""
    file_type = "MXFP4" if name.startswith("gpt-oss") else "Q4_K_M"
    path = write_shape(name, tmp_path / "s.gguf", file_type=file_type, n_vocab=4096)
    assert carries_kv(read_header(path).shape(), args) is carried


def test_what_was_never_measured_is_tried_once() -> None:
    """The first save is how the figures begin; a few tokens are not looked at."""
    assert KvFigures().worth_it(100)
    assert not KvFigures().worth_it(15)


def test_state_is_saved_only_while_it_gains_more_than_it_costs() -> None:
    """The rule: tokens x evaluation per token, against measured save and restore."""
    figures = KvFigures(Rate(1000, 1.0), Rate(1000, 0.3), Rate(1000, 0.3))
    assert figures.worth_it(500)
    assert not KvFigures(Rate(1000, 1.0), Rate(1000, 0.6), Rate(1000, 0.5)).worth_it(500)


def test_state_that_nobody_continues_is_given_up_and_tried_again_later() -> None:
    """Starts after which restored state was not used lower the gain; skipped evictions raise it."""
    figures = KvFigures(Rate(1000, 1.0), Rate(1000, 0.3), Rate(1000, 0.1))
    for _ in range(10):
        figures = figures.reused(500, 0)
    assert not figures.worth_it(500)
    for _ in range(60):
        figures = figures.skipped()
    assert figures.worth_it(500)


def test_figures_survive_as_json_and_damaged_ones_are_refused() -> None:
    """The inverse holds; shares above 1 and negative seconds are not figures."""
    figures = KvFigures(Rate(10, 0.5), Rate(20, 0.1), Rate(), 0.7)
    assert KvFigures.from_json(figures.to_json()) == figures
    for bad in ({**figures.to_json(), "reuse": 2}, {"evaluation": 1}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            KvFigures.from_json(bad)


def test_the_longest_conversations_are_saved_as_far_as_the_budget_holds() -> None:
    """A slot that does not fit any more is left out, a smaller one after it is not."""
    slots = [SlotState(0, 100), SlotState(1, 900), SlotState(2, 400), SlotState(3, 3)]
    chosen = choose_saves(slots, KvFigures(), 10.0, 10_000)
    assert [s.slot for s in chosen] == [1, 0]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=20),
    st.integers(0, 500),
    st.integers(0, 300),
)
def test_room_is_made_of_the_least_recently_used_and_no_more_than_needed(
    rows: list[tuple[int, int]], limit: int, coming: int
) -> None:
    """What stays fits with what comes; the last one deleted was needed; nothing older stays."""
    states = [SavedState("k", str(i), size, float(at)) for i, (size, at) in enumerate(rows)]
    gone = make_room(states, limit, coming)
    stays = [s for s in states if s not in gone]
    left = sum(s.size_bytes for s in stays)
    assert left + coming <= limit or not stays
    if gone:
        assert left + gone[-1].size_bytes + coming > limit
        assert all(s.used_at >= max(g.used_at for g in gone) for s in stays)


def test_slots_get_their_own_conversation_and_the_others_the_warm_prompt() -> None:
    """Every judge that runs in parallel finds the rubric evaluated."""
    warm = range(100)
    talk = [*range(100), 7, 8]
    assert choose_restores(3, {1: talk}, list(warm)) == {1: 1, 0: None, 2: None}
    assert choose_restores(2, {0: [5], 1: [6]}, None) == {0: 0, 1: 1}
    assert choose_restores(1, {}, list(warm)) == {0: None}


def test_a_warm_prompt_is_restored_even_if_a_conversation_has_to_give_way() -> None:
    """Unless a conversation begins with it, which is as good; its template's end may differ."""
    warm = list(range(100))
    other, longer = [1, 2, 3], [9, *range(200)]
    assert choose_restores(2, {0: longer, 1: other}, warm) == {0: 0, 1: None}
    continued = [*range(80), 5, 5, 5]
    assert choose_restores(2, {0: continued, 1: other}, warm) == {0: 0, 1: 1}


def test_a_slot_that_the_engine_no_longer_has_gets_nothing() -> None:
    """State of a larger number of slots is left aside."""
    assert choose_restores(1, {0: [1], 3: [2]}, None) == {0: 0}


def test_common_prefixes_are_counted_in_tokens() -> None:
    """Equal sequences, diverging ones, and one that begins the other."""
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix([1, 2], [1, 2, 3]) == 2
