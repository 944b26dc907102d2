"""Which runtime suits a case, and the shapes of well-known models."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.gguf import read_header
from budget.errors import RoleViolation, UnknownModel
from budget.footprint import HOST, EngineArgs
from budget.memory.closed_form import estimate
from budget.memory.overhead import DEFAULT_OVERHEAD, engine_overhead_bytes
from budget.placement.known_models import known_shape
from budget.placement.runtimes import Case, choose_runtime
from shim.cli import main
from shim.config import Config
from shim.placement.recommendations import Subject, advise, here, subjects
from tools.shapes import write_shape

GIB = 1 << 30

BASE = Case(
    users=1,
    n_gpus=1,
    fits_one=True,
    fits_all=True,
    vllm_fits_one=True,
    vllm_fits_all=True,
    fits_host=True,
    fits_split=True,
    split_gain=2.0,
)


def case(**fields: object) -> Case:
    """The base case with other facts."""
    return Case(**{**{name: getattr(BASE, name) for name in Case.__slots__}, **fields})


NO_GPU = {"n_gpus": 0, "fits_one": False, "fits_all": False, "vllm_fits_one": False,
          "vllm_fits_all": False, "fits_split": False}  # fmt: skip
TOO_BIG = {"fits_one": False, "fits_all": False, "vllm_fits_one": False, "vllm_fits_all": False}


@pytest.mark.parametrize(
    ("found", "runtime"),
    [
        (case(), "llama.cpp whole"),
        (case(users=16), "vLLM"),
        (case(users=16, vllm_fits_one=False, vllm_fits_all=False), "llama.cpp whole"),
        (case(users=16, n_gpus=2, fits_one=False, vllm_fits_one=False), "vLLM with tensor parallelism"),
        (case(n_gpus=2, fits_one=False), "llama.cpp whole"),
        (case(**TOO_BIG), "llama.cpp split"),
        (case(**TOO_BIG, split_gain=1.1), "llama.cpp on CPU"),
        (case(**TOO_BIG, split_gain=1.1, fits_host=False), "llama.cpp split"),
        (case(**NO_GPU), "llama.cpp on CPU"),
        (case(**NO_GPU, users=16), "llama.cpp on CPU"),
        (case(**NO_GPU, fits_host=False), "none here"),
        (case(**TOO_BIG, fits_host=False, fits_split=False), "none here"),
    ],
)  # fmt: skip
def test_each_condition_has_its_runtime(found: Case, runtime: str) -> None:
    """The table's rows, with those that people leave out: too big quantized, no GPU and many users."""
    assert choose_runtime(found).runtime == runtime


def test_every_case_has_a_runtime_and_the_first_row_decides() -> None:
    """No combination of facts falls through, and the others that match are named."""
    flags = itertools.product((True, False), repeat=6)
    for bits, gpus, users, gain in itertools.product(flags, (0, 1, 2), (1, 8), (1.0, 2.0)):
        one, several, vllm_one, vllm_several, host, split = bits
        found = Case(users, gpus, one, several, vllm_one, vllm_several, host, split, gain)
        verdict = choose_runtime(found)
        assert verdict.rule not in verdict.also
        if gpus == 0 and not (vllm_one or vllm_several):
            assert verdict.runtime in {"llama.cpp on CPU", "none here"}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama-2-7b", (13.48, 7.16, 4.78, 4.08, 3.30)),
        ("llama-3.1-8b", (16.06, 8.53, 5.73, 4.91, 4.01)),
        ("llama-2-13b", (26.03, 13.83, 9.23, 7.87, 6.34)),
    ],
)
def test_known_shapes_have_the_sizes_of_the_published_files(
    name: str, sizes: tuple[float, ...]
) -> None:
    """Within 0.3% of the files, in GB."""
    kinds = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M")
    found = [known_shape(name, kind).weights_bytes / 1e9 for kind in kinds]
    assert found == pytest.approx(sizes, rel=0.003)
    with pytest.raises(UnknownModel):
        known_shape("llama-9", "F16")


def test_recommend_needs_no_gpu_no_configuration_and_no_llama(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For 8 GiB: what fits, what is split and what is too big, with rates and the rule."""
    monkeypatch.setenv("KEEPWARM_LLAMA_BIN", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
            main,
            ["recommend", "--vram", "8GiB", "--bandwidth", "300", "--host-bandwidth", "50",
             "--host-memory", "24GiB", "--json", "llama-3.1-8b:Q4_K_M", "llama-2-13b:Q8_0",
             "llama-3.1-70b:Q4_K_M"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    small, middle, big = json.loads(done.stdout)["models"]
    assert (small["verdict"], small["runtime"]) == ("fits", "llama.cpp whole")
    assert (middle["verdict"], middle["runtime"]) == ("split", "llama.cpp split")
    assert middle["tokens_per_s"] > 1.2 * middle["cpu_tokens_per_s"]
    assert (big["verdict"], big["tokens_per_s"]) == ("no", None)
    assert small["gpu_bytes"] < 8 << 30


@pytest.mark.parametrize("vram_gib", [4, 6, 9, 30])
def test_what_is_recommended_is_computed_for_the_chosen_layers(
    vram_gib: int, tmp_path: Path
) -> None:
    """The table that choices are made of lies between a few places; the answer's bytes do not."""
    path = write_shape("gemma4-e4b", tmp_path / "m.gguf", n_vocab=32000)
    shape = read_header(path).shape()
    target = here(vram=[vram_gib * GIB], host_bytes=64 * GIB)
    found = advise(Subject("m", "Q4_K_M", shape), target, 1, 8192)
    layers = found.n_gpu_layers
    assert layers
    args = EngineArgs(8192, n_gpu_layers=layers, devices=("cuda:0",))
    exact = estimate(shape, args, ["cuda:0"])
    assert found.gpu_bytes == exact["cuda:0"].total_bytes + DEFAULT_OVERHEAD.device_bytes
    assert found.host_bytes == exact[HOST].total_bytes + engine_overhead_bytes(shape, args)
    assert found.gpu_bytes <= vram_gib * GIB


def test_several_gpus_have_room_for_what_crosses_in_a_pipeline() -> None:
    """Each of them keeps four copies of it."""
    shape = known_shape("llama-2-13b", "Q8_0")
    target = here(vram=[12 * GIB, 12 * GIB], host_bytes=64 * GIB)
    found = advise(Subject("m", "Q8_0", shape), target, 1, 4096)
    args = EngineArgs(4096, n_gpu_layers=41, devices=("cuda:0", "cuda:1"), tensor_split=(20, 21))
    exact = estimate(shape, args, ["cuda:0", "cuda:1"])
    assert found.kind == "spread"
    assert found.gpu_bytes >= sum(exact[name].total_bytes for name in args.devices)


def test_a_role_decides_which_file_type_is_advised() -> None:
    """Q4_K_M for what writes, Q8_0 for what judges; a type that is named counts."""
    for role, kind in (("producer", "Q4_K_M"), ("planner", "Q4_K_M"), ("evaluator", "Q8_0")):
        words = ["--vram", "8GiB", "--role", role, "--json", "llama-3.1-8b"]
        done = CliRunner().invoke(main, ["recommend", *words])
        assert [row["file_type"] for row in json.loads(done.output)["models"]] == [kind]
    (named,) = subjects(["llama-3.1-8b:Q6_K"], Config(), "producer")
    assert named.file_type == "Q6_K"
    assert len(subjects(["llama-3.1-8b"], Config())) > 3


def test_no_evaluator_is_advised_that_is_too_coarse_to_be_one(tmp_path: Path) -> None:
    """By its name and by its file's tensors, as the configuration refuses it."""
    file = write_shape("llama-3.1-8b", tmp_path / "m.gguf", file_type="Q4_K_M")
    for name in ("llama-3.1-8b:Q6_K", str(file)):
        with pytest.raises(RoleViolation, match="at least"):
            subjects([name], Config(), "evaluator")
    assert subjects(["llama-3.1-8b:F16"], Config(), "evaluator")


def test_recommend_refuses_what_makes_no_sense() -> None:
    """Contradictions and impossible figures are the caller's mistakes, reported with what is allowed."""
    runner = CliRunner()
    for words in (
        ["--vram", "8GiB", "--device", "host"],
        ["--vram", "lots"],
        ["--vram", "8GiB", "--bandwidth", "-3"],
        ["no-such-model"],
    ):
        assert runner.invoke(main, ["recommend", *words]).exit_code == 2


def test_several_gpus_are_one_size_each_and_say_whole_spread_or_split() -> None:
    """`--vram 8GiB,12GiB`: whole on the bigger one, spread over both, or split with the CPU."""
    target = here(vram=[8 * GIB, 12 * GIB], host_bytes=64 * GIB)
    assert (target.n_gpus, target.vram_bytes) == (2, 8 * GIB)
    found = {
        name: advise(subject, target, 1, 4096).kind
        for name in ("llama-3.1-8b:Q8_0", "llama-2-13b:Q8_0", "llama-3.1-70b:Q4_K_M")
        for subject in subjects([name], Config())
    }
    assert list(found.values()) == ["whole", "spread", "split"]
    one = here(vram=[12 * GIB], host_bytes=64 * GIB)
    (thirteen,) = subjects(["llama-2-13b:Q8_0"], Config())
    assert advise(thirteen, one, 1, 4096).kind == "split"
