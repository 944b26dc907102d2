"""Conversations that survive a swap, on real llama-server engines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim import Shim
from shim.keeper.kv import carry as carry_module
from tests.kv.support import QUESTIONS, STORY, Talk, cached, config, history, prompted, saved_files
from tests.processes import wait_until
from tools.shapes import write_shape

pytestmark = pytest.mark.real


def test_a_conversation_goes_on_where_it_was_after_another_model_had_the_bytes(
    tiny_models: dict[str, Path], kv_folder: Path
) -> None:
    """Evicted for B and loaded again, A evaluates only what is new; the trace says what it took."""
    settings = config(
        {
            "a": {"path": str(tiny_models["classifier"])},
            "b": {"path": str(tiny_models["producer"]), "context": 1024},
        },
        kv_folder,
    )
    settings["budget"]["limit"] = "45MB"
    with Shim(settings) as shim:
        talk = Talk(shim, "a")
        first = talk.say(QUESTIONS[0])
        assert shim.chat("b", "Hello.", max_tokens=2).residency.evicted == ("a",)
        assert [p.stat().st_mode & 0o777 for p in saved_files(kv_folder)] == [0o600]
        assert {p.parent.stat().st_mode & 0o777 for p in saved_files(kv_folder)} == {0o700}
        second = talk.say(QUESTIONS[1])
        assert second.residency.evicted == ("b",)
        assert cached(second) >= prompted(first)
        answer = history(shim)
        assert answer["evictions"][0]["saved_bytes"] > 0
        assert 0 < answer["evictions"][0]["save_s"] < 5
        assert answer["loads"][-1]["restored_tokens"] >= prompted(first)
        assert answer["loads"][-1]["restore_s"] > 0
    assert saved_files(kv_folder) == []


def test_answers_are_those_of_a_model_that_never_left(
    chat_model: Path, kv_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token at temperature 0 with one slot, whatever the quantization."""
    # Whether a save is worth it depends on measured seconds, which say anything on a busy machine.
    monkeypatch.setattr(carry_module, "choose_saves", lambda slots, *_: list(slots))
    models = {"a": {"path": str(chat_model)}}
    with Shim(config(models, kv_folder, enabled=False)) as shim:
        stayed = [Talk(shim, "a")]
        answers = [stayed[0].say(text, 24).content for text in QUESTIONS]
    with Shim(config(models, kv_folder)) as shim:
        talk = Talk(shim, "a")
        for text, answer in zip(QUESTIONS, answers, strict=True):
            reply = talk.say(text, 24)
            assert reply.content == answer
            assert shim.unload("a")
        assert cached(reply) > 100


def test_state_that_cannot_be_restored_is_evaluated_anew(
    tiny_models: dict[str, Path], kv_folder: Path
) -> None:
    """A file that was cut off, and one that is gone: slower, and no error."""
    with Shim(config({"a": {"path": str(tiny_models["classifier"])}}, kv_folder)) as shim:
        talk = Talk(shim, "a")
        talk.say(QUESTIONS[0])
        assert shim.unload("a")
        (path,) = saved_files(kv_folder)
        path.write_bytes(path.read_bytes()[:5000])
        reply = talk.say(QUESTIONS[1])
        assert cached(reply) == 0
        assert shim.unload("a")
        for left in saved_files(kv_folder):
            left.unlink()
        assert cached(talk.say(QUESTIONS[2])) == 0


def test_conversations_of_several_slots_return_to_their_slots(
    tiny_models: dict[str, Path], kv_folder: Path
) -> None:
    """Two that ran side by side both go on; llama-server finds the slot by its tokens."""
    models = {"a": {"path": str(tiny_models["classifier"]), "slots": 2, "context": 4096}}
    with Shim(config(models, kv_folder)) as shim, ThreadPoolExecutor(2) as pool:
        talks = [Talk(shim, "a"), Talk(shim, "a")]
        texts = [f"One. {STORY}", f"Another one. {STORY}"]
        firsts = list(pool.map(lambda p: p[0].say(p[1]), zip(talks, texts, strict=True)))
        assert shim.unload("a")
        assert len(saved_files(kv_folder)) == 2
        for talk, first in zip(talks, firsts, strict=True):
            assert cached(talk.say("And then?")) >= prompted(first)


def test_the_budget_on_disk_is_kept(tiny_models: dict[str, Path], kv_folder: Path) -> None:
    """What is larger than the budget is not saved; what comes pushes out what is older."""
    models = {
        "a": {"path": str(tiny_models["classifier"])},
        "e": {"path": str(tiny_models["evaluator"])},
    }
    with Shim(config(models, kv_folder, limit="20kB")) as shim:
        Talk(shim, "a").say(QUESTIONS[0])
        assert shim.unload("a")
        assert saved_files(kv_folder) == []
    with Shim(config(models, kv_folder, limit="1MB")) as shim:
        for name in ("a", "e"):
            Talk(shim, name).say(QUESTIONS[0])
            assert shim.unload(name)
            files = saved_files(kv_folder)
            assert len(files) == 1
            assert 100_000 < sum(path.stat().st_size for path in files) <= 1_000_000


def test_a_warm_prompt_is_evaluated_once_ever(
    tiny_models: dict[str, Path], kv_folder: Path
) -> None:
    """Restored after every later load, in every slot, also by the next keeper."""
    rubric = "You are a strict judge. Marks for clarity, truth, brevity and tone. " * 20
    entry = {"path": str(tiny_models["evaluator"]), "slots": 2, "context": 4096}
    settings = config({"judge": {**entry, "warm_prompt": rubric}}, kv_folder)

    def judge(shim: Shim, text: str) -> int:
        messages = [{"role": "system", "content": rubric}, {"role": "user", "content": text}]
        return cached(shim.chat("judge", messages, max_tokens=2))

    with Shim(settings) as shim:
        shim.load("judge")
        assert history(shim)["loads"][0]["restored_tokens"] > 0, "the other slot"
        alone = judge(shim, "An essay.")
        assert alone > 300
        assert shim.unload("judge")
        assert judge(shim, "A poem.") >= alone
    with Shim(settings) as shim, ThreadPoolExecutor(2) as pool:
        shim.load("judge")
        assert history(shim)["loads"][0]["restored_tokens"] > 600
        both = list(pool.map(lambda text: judge(shim, text), ("A novel.", "A song.")))
        assert min(both) >= alone


def test_a_sliding_window_saves_nothing_unless_all_of_it_is_kept(
    tmp_path: Path, kv_folder: Path
) -> None:
    """The capability is absent, so nothing is written; `swa_full` brings it back."""
    path = write_shape(
        "gemma3-4b", tmp_path / "g.gguf", n_layers=6, n_vocab=4096, n_embd=256, n_ff=512,
        heads=4, kv_heads=2, head_dim=64, extra={"attention.sliding_window": 256},
    )  # fmt: skip
    for swa_full, files in ((False, 0), (True, 1)):
        entry = {"path": str(path), "swa_full": swa_full}
        with Shim(config({"g": entry}, kv_folder)) as shim:
            talk = Talk(shim, "g")
            first = talk.say(STORY, 2)
            assert shim.unload("g")
            assert len(saved_files(kv_folder)) == files
            again = talk.say("Go on.", 2)
            assert cached(again) == 0 if not swa_full else cached(again) >= prompted(first)


def test_removing_a_model_deletes_its_state(tiny_models: dict[str, Path], kv_folder: Path) -> None:
    """A configuration without it leaves nothing of its conversations."""
    models = {
        "a": {"path": str(tiny_models["classifier"])},
        "e": {"path": str(tiny_models["evaluator"])},
    }
    with Shim(config(models, kv_folder)) as shim:
        for name in models:
            Talk(shim, name).say(QUESTIONS[0])
            assert shim.unload(name)
        before = saved_files(kv_folder)
        del models["a"]
        shim.reload(type(shim.config).from_mapping(config(models, kv_folder)))
        assert wait_until(lambda: len(saved_files(kv_folder)) == 1)
        assert set(saved_files(kv_folder)) < set(before)
