"""Further arguments of llama-server that change an engine's figures: YaRN, overrides, drafts, vectors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from backends.footprint.cache import cache_key
from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from backends.llama.args import LaunchSettings, server_argv
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs
from budget.memory.arguments import check_args, outputs_per_slot
from budget.memory.companions import draft_args
from budget.memory.further.option_values import last_value, trained_context
from budget.memory.further.speculation import draft_kinds
from shim.config import Config, ModelEntry
from shim.keeper.catalog.preparing import prepare
from tests.footprint.support import footprint_of, logged_until_ready
from tests.keeper.catalog.changing import closed_form
from tests.keeper.catalog.test_left_out_keys import host_of
from tools.shape_layouts import Shape
from tools.shapes import SHAPES, write

BASE = Shape("base", "llama", 2, 256, 1000, 512, 4, 2, context=512)
MTP = replace(
    SHAPES["glm-4.5-air"],
    name="mtp",
    n_layers=3,
    n_embd=256,
    n_vocab=1000,
    n_ff=512,
    heads=4,
    kv_heads=2,
    head_dim=64,
    experts=4,
    experts_used=2,
    n_ff_expert=128,
)
ARGS = EngineArgs(n_ctx=512, devices=(HOST,), flash_attention="on")
MIB = 1 << 20
YARN = ("--rope-scaling", "yarn", "--rope-scale", "4")
CASES = [
    ((), 512),
    (YARN, 2048),
    (("--rope-scaling", "yarn", "--rope-freq-scale", "0.5"), 1024),
    ((*YARN, "--yarn-orig-ctx", "1024"), 4096),
    (("--rope-scaling", "yarn"), 512),
    (("--rope-scale", "4"), 512),
    (("--rope-scaling", "linear", "--rope-scale", "4"), 512),
    (("--override-kv", "llama.context_length=int:4096"), 4096),
    (("--override-kv", "other.key=bool:true,llama.context_length=int:1024"), 1024),
    (("--override-kv", "llama.context_length=float:4096"), 512),
    (("--override-kv", "llama.context_length=int:256", *YARN), 1024),
]


@pytest.mark.parametrize(("extra", "tokens"), CASES)
def test_yarn_and_overrides_set_the_tokens_that_a_slot_may_have(
    extra: tuple[str, ...], tokens: int, tmp_path: Path
) -> None:
    """So many are accepted, one more is refused."""
    shape = read_header(write(BASE, tmp_path)).shape()
    assert trained_context(extra, shape) == tokens
    check_args(replace(ARGS, n_ctx=2 * tokens, slots=2, extra=extra), shape)
    with pytest.raises(ConfigError, match=f"trained for {tokens}"):
        check_args(replace(ARGS, n_ctx=tokens + 1, extra=extra), shape)


@pytest.mark.real
@pytest.mark.parametrize(("extra", "tokens"), [CASES[1], CASES[3], CASES[5], CASES[7], CASES[10]])
def test_llama_server_gives_a_slot_that_many_tokens(
    extra: tuple[str, ...], tokens: int, tmp_path: Path, runtime_dir: Path
) -> None:
    """It cuts the context of a slot to the trained one, with a line in its log."""
    args = replace(ARGS, n_ctx=8192, extra=extra)
    lines = logged_until_ready(write(BASE, tmp_path), args, runtime_dir)
    cut = [m[1] for line in lines if (m := re.search(r"of the model \((\d+)\) - capping", line))]
    assert cut == [str(tokens)]


def test_a_configured_context_may_be_as_long_as_yarn_allows(tmp_path: Path) -> None:
    """The documentation's own example; without YaRN the refusal says how to stretch the model."""
    path = write(BASE, tmp_path)
    keys = {"path": str(path), "context": 2048}
    with closed_form():
        found = prepare("m", _entry({**keys, "engine_args": list(YARN)}), host_of(), Inspector())
        assert found.placements[0].args.n_ctx == 2048
        with pytest.raises(ConfigError, match="trained for 512") as caught:
            prepare("m", _entry(keys), host_of(), Inspector())
    assert "--rope-scale" in caught.value.hint


def _entry(keys: dict[str, object]) -> ModelEntry:
    return Config.from_mapping({"models": {"m": keys}}).models["m"]


def test_the_last_value_of_an_option_holds_in_any_spelling() -> None:
    """`_` counts as `-`, as llama-server reads it."""
    extra = ("--rope-scale", "2", "--rope_scale", "4", "--temp", "1")
    assert last_value(extra, "--rope-scale") == "4"
    assert last_value(extra, "--spec-type") is None


@pytest.mark.real
@pytest.mark.parametrize(
    "extra",
    [
        ("--spec-type", "ngram-simple"),
        ("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-m", "20"),
        ("--spec-type", "none", "--spec-type", "ngram-simple,ngram-cache"),
        ("--spec-default",),
    ],
)
def test_drafts_take_the_rows_that_llama_server_reserves(
    extra: tuple[str, ...], tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Each drafted token is a row of logits more."""
    args = replace(ARGS, extra=extra)
    lines = logged_until_ready(tiny_models["evaluator"], args, runtime_dir)
    rows = [m[1] for line in lines if (m := re.search(r"n_outputs_max_per_seq = (\d+)", line))]
    assert rows == [str(outputs_per_slot(args))]
    assert outputs_per_slot(args) > 1


@pytest.mark.parametrize(
    ("extra", "n_bytes"),
    [
        (("--spec-type", "ngram-mod"), 16 * MIB),
        (("--spec-default",), 16 * MIB),
        (("--spec-type", "ngram-map-k"), 2 * 9 * MIB // 8),
        (("--spec-type", "ngram-cache"), 512 * 1024),
        (("--spec-type", "ngram-simple"), 0),
        (("--spec-type", "none"), 0),
    ],
)
def test_the_tables_of_drafts_are_booked(
    extra: tuple[str, ...], n_bytes: int, tmp_path: Path
) -> None:
    """As process memory of the host; the note does not call them uncounted."""
    path = write(BASE, tmp_path)
    plain = footprint_of(path, replace(ARGS, slots=2), source="closed-form")
    found = footprint_of(path, replace(ARGS, slots=2, extra=extra), source="closed-form")
    more = found.footprints[HOST].overhead_bytes - plain.footprints[HOST].overhead_bytes
    assert more == n_bytes
    assert "not counted" not in found.reason


@pytest.mark.real
def test_a_head_that_predicts_tokens_is_booked_with_a_context_of_its_own(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """Its layers to the byte; cache and compute buffer at least as a real engine logs them."""
    path, folder = write(MTP, tmp_path), runtime_dir
    args = replace(ARGS, extra=("--spec-type", "draft-mtp"))
    found = footprint_of(path, args, source="dry-run").footprints[HOST]
    lines = logged_until_ready(path, args, folder)

    def logged(what: str) -> float:
        return sum(
            float(m[1])
            for line in lines
            if (m := re.search(rf"{what} buffer size = +([\d.]+) MiB", line))
        )

    assert found.weights_bytes / MIB == pytest.approx(logged("CPU model"), abs=0.01)
    assert found.kv_bytes / MIB >= logged("CPU KV") - 0.01
    # The engine reserves the second buffer twice, one after the other.
    assert found.compute_bytes / MIB >= logged("CPU compute") / 2


def test_the_states_of_drafted_tokens_are_booked(tmp_path: Path) -> None:
    """A recurrent model keeps its state after each of them."""
    base = SHAPES["qwen3.5-27b"]
    extra = {**base.extra, "nextn_predict_layers": 1}
    path = write(replace(base, n_layers=5, n_vocab=1000, extra=extra), tmp_path)
    kv = {
        drafted: footprint_of(
            path,
            replace(ARGS, extra=("--spec-type", "draft-mtp", "--spec-draft-n-max", drafted)),
            source="closed-form",
        )
        .footprints[HOST]
        .kv_bytes
        for drafted in ("0", "1", "5")
    }
    state = kv["1"] - kv["0"]
    assert state > 0
    assert kv["5"] == kv["0"] + 5 * state


def test_drafts_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    """llama-server runs without them, and says so in its log alone."""
    shape = read_header(write(BASE, tmp_path)).shape()
    with pytest.raises(ConfigError, match="draft-eagle3 needs a draft model"):
        check_args(replace(ARGS, extra=("--spec-type", "draft-eagle3")), shape)
    with pytest.raises(ConfigError, match="layers that predict further tokens"):
        check_args(replace(ARGS, extra=("--spec-type", "draft-mtp")), shape)


@pytest.mark.real
def test_a_draft_model_drafts(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """This build loads a draft model and leaves it idle unless the kind of draft is named."""
    model = tiny_models["evaluator"]
    args = replace(ARGS, draft_model=str(model))
    lines = logged_until_ready(model, args, runtime_dir)
    assert any("adding speculative implementation 'draft-simple'" in line for line in lines)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ((), True),
        (("--spec-type", "ngram-mod"), True),
        (("--spec-type", "draft-eagle3"), False),
        (("--spec-type", "draft-simple"), False),
    ],
)
def test_the_kind_of_draft_is_named_where_the_configuration_names_none(
    extra: tuple[str, ...], named: bool, tmp_path: Path
) -> None:
    """A draft model beside tables of n-grams is still used."""
    args = replace(ARGS, draft_model="d.gguf", extra=extra)
    settings = LaunchSettings(tmp_path / "m.gguf", "m", tmp_path / "s.sock", tmp_path, 1, 1)
    argv = server_argv(Path("llama-server"), args, settings)
    assert ("draft-simple" in argv[: len(argv) - len(extra)]) == named
    assert draft_kinds(args)[-1] == ("draft-eagle3" if "draft-eagle3" in extra else "draft-simple")


def test_a_draft_models_cache_has_the_types_that_were_written() -> None:
    """F16 otherwise; the target's own options are not the draft's."""
    extra = ("-ctkd", "f32", "--spec-draft-type-v", "q8_0", "--spec-type", "ngram-mod")
    found = draft_args(replace(ARGS, draft_model="d.gguf", extra=extra), 2)
    assert (found.kv_type_k, found.kv_type_v, found.extra) == ("f32", "q8_0", ())


def test_a_control_vector_is_a_row_of_floats_for_each_layer(tmp_path: Path) -> None:
    """Several are added up when they are loaded."""
    path = write(BASE, tmp_path)
    plain = footprint_of(path, ARGS, source="closed-form").footprints[HOST]
    extra = ("--control-vector", "a.gguf,b.gguf", "--control-vector-layer-range", "0", "1")
    found = footprint_of(path, replace(ARGS, extra=extra), source="closed-form")
    rows = found.footprints[HOST].weights_bytes - plain.weights_bytes
    assert rows == BASE.n_layers * BASE.n_embd * 4


def test_measurements_are_kept_by_the_tokens_that_are_drafted() -> None:
    """What was measured for an engine without drafts keeps its key."""
    plain = cache_key("file", ARGS, "build")
    assert cache_key("file", replace(ARGS, extra=()), "build") == plain
    keys = {
        cache_key("file", replace(ARGS, extra=("--spec-type", kind)), "build")
        for kind in ("ngram-simple", "ngram-mod", "none")
    }
    assert len(keys | {plain}) == 4
