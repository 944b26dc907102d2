"""What an engine may take at most, and what happens to one that takes more."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from backends.engine_process.ceiling import Ceilings
from backends.engine_process.log import looks_out_of_memory
from backends.machine.processes import process_bytes
from backends.openai import AsyncTransport, ChatRequest
from budget.errors import OutOfMemory
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from tests.engines.support import HELLO, llama, placement, running
from tests.engines.templates import GROWS, GROWS_AT_LOAD, with_template

MIB = 1 << 20
GO = ChatRequest("go", {"max_tokens": 4})


def placed(booked: int, source: str = "dry-run", device: str = "RPC0") -> Placement:
    """A placement that books so much of the host and of another device."""
    part = Footprint(weights_bytes=booked)
    return Placement(EngineArgs(n_ctx=512), {HOST: part, device: part}, source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("booked", "source", "margin"),
    [
        (100 * MIB, "dry-run", 512 * MIB),
        (8192 * MIB, "dry-run", 2048 * MIB),
        (8192 * MIB, "engine", 2048 * MIB),
        (8192 * MIB, "closed-form", 8192 * MIB),
        (100 * MIB, "closed-form", 512 * MIB),
    ],
)
def test_the_margin_is_a_quarter_and_half_a_gib_at_least(
    booked: int, source: str, margin: int
) -> None:
    """An estimate alone may be far off: it gets as much again."""
    assert Ceilings.of(placed(booked, source), 512 * MIB).margin(HOST) == margin


def test_a_gpus_driver_gets_a_gib_more() -> None:
    """The driver's context and pools cannot be predicted, on the GPU and in the process."""
    ceilings = Ceilings.of(placed(100 * MIB, device="cuda:0"), 512 * MIB)
    assert ceilings.margin("cuda:0") == ceilings.margin(HOST) == (512 + 1024) * MIB


def test_a_passed_ceiling_is_reported_with_all_figures() -> None:
    """By device; what is unknown passes nothing, and what is at its ceiling neither."""
    ceilings = Ceilings.of(placed(100 * MIB), 50 * MIB)
    assert ceilings.exceeded("m", {HOST: 150 * MIB, "RPC0": None}, ()) is None
    error = ceilings.exceeded("m", {HOST: 5 * MIB, "RPC0": 151 * MIB}, ("last line",))
    assert isinstance(error, OutOfMemory)
    assert error.facts == {
        "model": "m",
        "device": "RPC0",
        "booked_bytes": 100 * MIB,
        "ceiling_bytes": 150 * MIB,
        "found_bytes": 151 * MIB,
        "log_tail": ["last line"],
    }
    assert "engine_margin" in error.hint


def test_no_margin_is_no_bound() -> None:
    """A margin of 0 means no bound."""
    assert Ceilings.of(placed(MIB), 0).exceeded("m", {HOST: 1 << 40}, ()) is None


def test_a_process_that_has_ended_holds_nothing_that_is_known() -> None:
    """No figure, instead of 0."""
    assert process_bytes(1 << 22) is None


def test_a_refused_allocation_is_seen_in_the_log() -> None:
    """C++ says it when the kernel refuses what is beyond the bound."""
    lines = [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
    ]
    assert looks_out_of_memory(lines)


@pytest.mark.real
def test_a_load_that_grows_without_end_is_ended_as_out_of_memory(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A template that builds text without end is met while the model loads; nothing stays behind."""
    engine = llama(tiny_models["producer"], runtime_dir, margin_bytes=64 * MIB)
    placed = placement(extra=with_template(GROWS_AT_LOAD))
    with pytest.raises(OutOfMemory) as caught:
        asyncio.run(engine.start(placed, lambda _fraction: None))
    facts = caught.value.facts
    assert facts["device"] == HOST
    assert facts["booked_bytes"] == dict(placed.bookings)[HOST]
    found, ceiling = facts["found_bytes"], facts["ceiling_bytes"]
    assert isinstance(found, int)
    assert isinstance(ceiling, int)
    assert ceiling < found < ceiling + 256 * MIB
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.real
def test_the_kernel_holds_an_engine_to_its_ceiling_that_is_not_looked_at(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The allocation is refused, the request fails, and the engine serves the next one."""

    async def scenario() -> OutOfMemory:
        engine = llama(tiny_models["producer"], runtime_dir, margin_bytes=64 * MIB)
        async with running(engine, placement(extra=with_template(GROWS))):
            client = AsyncTransport()
            with pytest.raises(OutOfMemory) as caught:
                await client.chat(engine.endpoint, GO)
            assert (await client.chat(engine.endpoint, HELLO)).usage.completion_tokens
            await client.aclose()
            return caught.value

    assert "engine_margin" in asyncio.run(scenario()).hint


@pytest.mark.real
@pytest.mark.parametrize("mapped", [False, True])
def test_an_ordinary_engine_is_far_from_its_bounds(
    tiny_models: dict[str, Path], runtime_dir: Path, mapped: bool
) -> None:
    """It loads and fills its context under a bound of its own, whether its weights are mapped or read."""

    async def scenario() -> None:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine, placement(n_ctx=4096, slots=4, use_mmap=mapped)):
            assert engine.pid is not None
            soft, hard = resource.prlimit(engine.pid, resource.RLIMIT_DATA)
            held = process_bytes(engine.pid)
            assert held is not None
            assert held.data + 1024 * MIB <= soft <= held.data + 1100 * MIB
            assert hard == resource.RLIM_INFINITY
            client = AsyncTransport()
            await client.chat(engine.endpoint, ChatRequest("many words " * 100, {"max_tokens": 8}))
            assert engine.overgrown({}) is None
            await client.aclose()

    asyncio.run(scenario())
