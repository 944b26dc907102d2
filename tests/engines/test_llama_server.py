"""The llama.cpp engine on real llama-server: failures, privacy, and what it passes through."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from backends.base import Death
from backends.engine_process.orphans import sweep_leftovers
from backends.engine_process.process import EngineProcess
from backends.llama.engine import LlamaServerEngine
from backends.machine.environment import OWNER_VARIABLE
from backends.machine.files.page_cache import drop_from_page_cache, resident_fraction, stage_file
from backends.openai import AsyncTransport, ChatRequest, Completion, SyncTransport
from budget.errors import (
    ConfigError,
    EngineDied,
    EngineTimeout,
    InternalError,
    InvalidRequest,
    LoadFailed,
    PromptTooLong,
)
from tests.engines.support import ENDLESS, HELLO, SHIFTS, llama, placement, running, until

pytestmark = pytest.mark.real

_REPOSITORY = Path(__file__).resolve().parents[2]


def _ask(model: Path, folder: Path, *requests: ChatRequest) -> list[Completion]:
    """The answers of one fresh engine, asked one after the other."""

    async def scenario() -> list[Completion]:
        async with running(llama(model, folder)) as engine:
            client = AsyncTransport()
            answers = [await client.chat(engine.endpoint, request) for request in requests]
            await client.aclose()
            return answers

    return asyncio.run(scenario())


def test_the_socket_is_private(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """No other user can talk to an engine: socket 0600, in a folder 0700."""

    async def scenario() -> tuple[int, int]:
        async with running(llama(tiny_models["classifier"], runtime_dir)) as engine:
            path = Path(engine.endpoint.socket_path or "")
            return stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)

    assert asyncio.run(scenario()) == (0o600, 0o700)


def test_an_open_runtime_folder_is_refused(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """A folder that others can enter would undo the socket's mode."""
    runtime_dir.chmod(0o755)
    with pytest.raises(ConfigError, match="700"):
        llama(tiny_models["classifier"], runtime_dir)


def test_a_socket_path_that_is_too_long_is_refused(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """107 bytes is the kernel's limit; the error says so instead of a failed bind."""
    with pytest.raises(ConfigError, match=r"107.*KEEPWARM_RUNTIME_DIR"):
        llama(tiny_models["classifier"], runtime_dir / ("x" * 100))


def test_an_engine_does_not_inherit_keys(
    tiny_models: dict[str, Path], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's API keys, and variables that would change the placement, stay out."""
    monkeypatch.setenv("SOME_API_KEY", "very-secret")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "256")

    async def scenario() -> bytes:
        async with running(llama(tiny_models["classifier"], runtime_dir)) as engine:
            assert isinstance(engine, LlamaServerEngine)
            return Path(f"/proc/{engine.pid}/environ").read_bytes()

    environment = asyncio.run(scenario())
    assert b"very-secret" not in environment
    assert b"LLAMA_ARG" not in environment
    assert OWNER_VARIABLE.encode() in environment


def test_kill_in_mid_stream_is_a_death_and_a_typed_error(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The stream fails with EngineDied, and the keeper's watch wakes with the last log lines."""

    async def scenario() -> Death:
        async with running(
            llama(tiny_models["producer"], runtime_dir), placement(**SHIFTS)
        ) as engine:
            assert isinstance(engine, LlamaServerEngine)
            watch = asyncio.ensure_future(engine.wait_death())
            stream = await AsyncTransport().stream(engine.endpoint, ENDLESS)
            await anext(stream)
            os.kill(engine.pid or 0, signal.SIGKILL)
            with pytest.raises(EngineDied, match="ended while it was needed"):
                async for _ in stream:
                    pass
            assert not await engine.healthy()
            return await asyncio.wait_for(watch, 60)

    death = asyncio.run(scenario())
    assert death.exit_code == -signal.SIGKILL
    assert death.log_tail


def test_a_request_to_a_dead_engine_is_a_typed_error(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A pooled connection to an engine that has gone gives EngineDied, not an HTTP library's."""

    async def scenario() -> None:
        client = SyncTransport()
        async with running(llama(tiny_models["producer"], runtime_dir)) as engine:
            endpoint = engine.endpoint
            await asyncio.to_thread(client.chat, endpoint, HELLO)
        with pytest.raises(EngineDied):
            client.chat(endpoint, HELLO)

    asyncio.run(scenario())


def test_a_truncated_file_fails_with_the_engines_last_lines(
    tiny_models: dict[str, Path], runtime_dir: Path, tmp_path: Path
) -> None:
    """A damaged model says why, in llama.cpp's own words, and leaves nothing running."""
    damaged = tmp_path / "damaged.gguf"
    whole = tiny_models["producer"].read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    engine = llama(damaged, runtime_dir)
    with pytest.raises(LoadFailed) as caught:
        asyncio.run(engine.start(placement(), lambda _fraction: None))
    assert caught.value.facts["log_tail"]
    assert "damaged" in str(caught.value)
    assert list(runtime_dir.iterdir()) == []


def test_a_load_that_stalls_is_given_up(
    tiny_models: dict[str, Path], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time-out counts from the last progress; a stopped process makes none."""
    spawn = EngineProcess.spawn

    def frozen(*args: object, **options: object) -> EngineProcess:
        process = spawn(*args, **options)  # type: ignore[arg-type]
        os.kill(process.pid, signal.SIGSTOP)
        return process

    monkeypatch.setattr(EngineProcess, "spawn", frozen)
    engine = llama(tiny_models["producer"], runtime_dir, stall_s=0.2)
    with pytest.raises(EngineTimeout, match="no progress"):
        asyncio.run(engine.start(placement(), lambda _fraction: None))
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid)


def test_a_prepared_engine_holds_until_it_is_started(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """It is there before its bytes are: nothing is read or listened to until `start`."""
    engine = llama(tiny_models["producer"], runtime_dir)

    async def scenario() -> None:
        await engine.prepare(placement())
        try:
            assert engine.pid is not None
            process = psutil.Process(engine.pid)
            assert await until(_in_the_server(process))
            assert engine.log_tail == ()
            assert not await engine.healthy()
            held = engine.pid
            await engine.start(placement(), lambda _fraction: None)
            assert engine.pid == held
            assert (await AsyncTransport().chat(engine.endpoint, HELLO)).content
        finally:
            await engine.stop(grace_s=0.0)

    asyncio.run(scenario())
    assert list(runtime_dir.iterdir()) == []


def _in_the_server(process: psutil.Process) -> Callable[[], Awaitable[bool]]:
    """Whether the wrapper has become llama-server, and waits."""

    async def there() -> bool:
        return process.name() == "llama-server" and process.status() == psutil.STATUS_SLEEPING

    return there


def test_a_prepared_engine_that_is_not_needed_leaves_nothing(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A start that was given up holds a process of a few megabytes until it is ended."""
    engine = llama(tiny_models["producer"], runtime_dir)

    async def scenario() -> None:
        await engine.prepare(placement())
        with pytest.raises(InternalError, match="another placement"):
            await engine.start(placement(n_ctx=1024), lambda _fraction: None)
        await engine.stop(grace_s=0.0)

    asyncio.run(scenario())
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid)
    assert list(runtime_dir.iterdir()) == []


def test_cancelling_a_load_ends_the_process(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A load that no request waits for any more is ended."""

    async def scenario() -> int:
        engine = llama(tiny_models["producer"], runtime_dir)

        def cancel(_fraction: float) -> None:
            load.cancel()

        load = asyncio.ensure_future(engine.start(placement(), cancel))
        with pytest.raises(asyncio.CancelledError):
            await load
        assert engine.pid is not None
        return engine.pid

    assert not psutil.pid_exists(asyncio.run(scenario()))


_KEEPER = """
import asyncio, sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from tests.engines.support import llama, placement

async def main():
    engine = llama(Path(sys.argv[1]), Path(sys.argv[2]))
    await engine.start(placement(), lambda fraction: None)
    print(engine.pid, flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


def test_no_engine_is_left_of_a_killed_keeper(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """SIGKILL of the process that started an engine ends the engine within two seconds."""
    keeper = subprocess.Popen(
        [sys.executable, "-c", _KEEPER, str(tiny_models["classifier"]), str(runtime_dir)],
        stdout=subprocess.PIPE,
        cwd=_REPOSITORY,
        text=True,
    )
    with keeper:
        assert keeper.stdout is not None
        engine = psutil.Process(int(keeper.stdout.readline()))
        keeper.kill()

        async def ended() -> bool:
            return not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE

        assert asyncio.run(until(ended))


def test_a_start_without_descriptors_leaves_no_folder(
    tiny_models: dict[str, Path], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing up after a start that found no descriptor left finds none either."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def gate() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        raise OSError(errno.EMFILE, "all are in use")

    monkeypatch.setattr("backends.llama.engine.Gate", gate)

    async def scenario() -> None:
        try:
            await llama(tiny_models["classifier"], runtime_dir).start(
                placement(), lambda _share: None
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    with pytest.raises(OSError, match="all are in use"):
        asyncio.run(scenario())
    assert list(runtime_dir.iterdir()) == []


def test_the_sweep_ends_leftovers_of_its_own_folder_only(runtime_dir: Path) -> None:
    """A process with this folder's mark goes; one with another's, and one without, stay."""
    marks = [str(runtime_dir.resolve()), str(runtime_dir / "other"), None]
    sleepers = [
        subprocess.Popen(
            [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ({OWNER_VARIABLE: mark} if mark else {}),
        )
        for mark in marks
    ]
    stale = runtime_dir / "e-0123456789ab.slots"
    stale.mkdir()
    foreign = [runtime_dir / "e-mails.slots", runtime_dir / "e-ffffffffffff.sock"]
    foreign[0].mkdir()
    foreign[1].write_text("mine")
    try:
        for sleeper in sleepers:
            assert sleeper.stdout is not None
            sleeper.stdout.readline()
        assert sweep_leftovers(runtime_dir) == [sleepers[0].pid]
        assert sleepers[0].wait(60) == -signal.SIGKILL
        assert [sleeper.poll() for sleeper in sleepers[1:]] == [None, None]
        assert not stale.exists()
        assert all(path.exists() for path in foreign), "they have not the form that engines give"
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.communicate()


def test_closing_a_stream_stops_generation(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """An unfinished stream that is closed costs no more tokens."""

    async def scenario() -> bool:
        async with running(
            llama(tiny_models["producer"], runtime_dir), placement(**SHIFTS)
        ) as engine:
            assert isinstance(engine, LlamaServerEngine)
            stream = await AsyncTransport().stream(engine.endpoint, ENDLESS)
            await anext(stream)
            assert any(slot["is_processing"] for slot in await engine._slots().rows())
            await stream.aclose()

            async def idle() -> bool:
                return not any(slot["is_processing"] for slot in await engine._slots().rows())

            return await until(idle)

    assert asyncio.run(scenario())


def test_hundreds_of_requests_on_one_client_never_meet_a_stale_connection(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """llama-server closes a connection after 100 requests without saying so; the caller does not notice."""

    async def scenario() -> int:
        one = ChatRequest("hello", {"max_tokens": 1})
        async with running(llama(tiny_models["classifier"], runtime_dir)) as engine:
            client = SyncTransport()

            def work() -> int:
                answers = (client.chat(engine.endpoint, one) for _ in range(230))
                return sum(answer.usage.completion_tokens for answer in answers)

            served = await asyncio.to_thread(work)
            client.close()
            return served

    assert asyncio.run(scenario()) == 230


def test_same_seed_same_answer_other_seed_other_answer(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Seeds reach the sampler."""
    options = {"max_tokens": 12, "temperature": 1.0, "cache_prompt": False}
    requests = [ChatRequest("hello", {**options, "seed": seed}) for seed in (7, 7, 8)]
    first, again, other = _ask(tiny_models["producer"], runtime_dir, *requests)
    assert first.content == again.content
    assert first.content != other.content


def test_stop_strings_end_the_answer_before_them(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The text stops where the stop string would begin."""
    whole, stopped = _ask(
        tiny_models["producer"],
        runtime_dir,
        HELLO,
        ChatRequest(
            HELLO.messages,
            {
                **HELLO.options,
                "grammar": 'root ::= "abc" "STOP" "def"',
                "stop": "STOP",
                "max_tokens": 40,
            },
        ),
    )
    assert whole.finish_reason == "length"
    assert stopped.content == "abc"
    assert stopped.finish_reason == "stop"


def test_a_json_schema_shapes_the_answer(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """Even random weights must answer in the schema."""
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["pass", "fail"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    request = ChatRequest("judge", {"json_schema": schema, "max_tokens": 60, "temperature": 0.0})
    (answer,) = _ask(tiny_models["evaluator"], runtime_dir, request)
    assert json.loads(answer.content)["verdict"] in {"pass", "fail"}


def test_a_grammar_shapes_the_answer(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """GBNF goes through to llama.cpp."""
    request = ChatRequest("judge", {"grammar": 'root ::= "yes" | "no"', "max_tokens": 8})
    (answer,) = _ask(tiny_models["classifier"], runtime_dir, request)
    assert answer.content in {"yes", "no"}


def test_a_bad_grammar_is_the_callers_error(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """llama-server's 400 comes out as InvalidRequest."""
    with pytest.raises(InvalidRequest, match="400"):
        _ask(tiny_models["classifier"], runtime_dir, ChatRequest("x", {"grammar": "root ::= ("}))


def test_a_prompt_over_the_context_is_typed_with_its_numbers(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The error carries the tokens of the prompt and of the context."""
    with pytest.raises(PromptTooLong) as caught:
        _ask(tiny_models["producer"], runtime_dir, ChatRequest("many words " * 2000))
    asked, context = caught.value.facts["n_prompt_tokens"], caught.value.facts["n_ctx"]
    assert isinstance(asked, int)
    assert isinstance(context, int)
    assert asked > context >= 512


def test_logprobs_come_with_the_answer(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """One entry per token, with the alternatives that were asked for."""
    options = {**HELLO.options, "logprobs": True, "top_logprobs": 2}
    (answer,) = _ask(tiny_models["producer"], runtime_dir, ChatRequest("hello", options))
    assert len(answer.logprobs) == answer.usage.completion_tokens
    assert all(len(entry["top_logprobs"]) == 2 for entry in answer.logprobs)


def test_a_repeated_prompt_is_served_from_the_slots_cache(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """`cache_n` says how much of the prompt was not evaluated again."""
    request = ChatRequest("the same long words " * 5, {"max_tokens": 2, "temperature": 0.0})
    cold, warm = _ask(tiny_models["producer"], runtime_dir, request, request)
    assert cold.timings is not None
    assert warm.timings is not None
    assert warm.timings.cache_n > cold.timings.cache_n


def test_embeddings_are_one_unit_vector_per_text(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """In the order of the texts: the same text gives the same vector wherever it stands."""

    async def scenario() -> tuple[tuple[float, ...], ...]:
        engine = llama(tiny_models["embedder"], runtime_dir)
        async with running(engine, placement(embeddings=True, n_ubatch=512)):
            client = AsyncTransport()
            found = await client.embed(engine.endpoint, ["one text", "another", "one text"])
            with pytest.raises(InvalidRequest, match="embed"):
                await client.chat(engine.endpoint, HELLO)
            with pytest.raises(InvalidRequest):
                await client.embed(engine.endpoint, [])
            await client.aclose()
            return found.vectors

    first, second, third = asyncio.run(scenario())
    assert first == pytest.approx(third, abs=1e-4)
    assert first != pytest.approx(second, abs=1e-3)
    assert math.isclose(sum(value * value for value in first), 1.0, rel_tol=1e-3)


def test_saved_kv_state_spares_the_evaluation_of_the_prompt(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """After another prompt took the slot, restoring brings the first one's tokens back."""

    async def scenario() -> tuple[Completion, Completion]:
        talk = ChatRequest("a long talk " * 10, {"max_tokens": 2, "temperature": 0.0, "slot": 0})
        other = ChatRequest("quite another thing", {"max_tokens": 2, "slot": 0})
        async with running(llama(tiny_models["producer"], runtime_dir)) as engine:
            client = AsyncTransport()
            first = await client.chat(engine.endpoint, talk)
            await engine.save_kv(0, "talk")
            await client.chat(engine.endpoint, other)
            await engine.restore_kv(0, "talk")
            again = await client.chat(engine.endpoint, talk)
            await client.aclose()
            return first, again

    first, again = asyncio.run(scenario())
    assert again.content == first.content
    assert again.timings is not None
    assert again.timings.cache_n >= again.usage.prompt_tokens - 1


def test_a_name_for_saved_state_cannot_leave_its_folder(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Names are checked before they become file names."""
    engine = llama(tiny_models["producer"], runtime_dir)
    with pytest.raises(InvalidRequest, match="not a name"):
        asyncio.run(engine.save_kv(0, "../escape"))


def test_the_report_says_whether_the_disk_was_read(
    tiny_models: dict[str, Path], runtime_dir: Path, tmp_path: Path
) -> None:
    """A dropped file loads cold, a staged one does not."""
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_models["producer"].read_bytes())

    async def load() -> str:
        engine = llama(model, runtime_dir)
        try:
            return (await engine.start(placement(), lambda _fraction: None)).storage
        finally:
            await engine.stop(grace_s=2.0)

    drop_from_page_cache(model)
    assert (fraction := resident_fraction(model)) is not None
    assert fraction < 0.1
    assert asyncio.run(load()) == "cold"
    assert asyncio.run(stage_file(model)) == model.stat().st_size
    assert resident_fraction(model) == 1.0
    assert asyncio.run(load()) == "staged"


def test_staging_can_be_cancelled_between_chunks(tmp_path: Path) -> None:
    """A bounded rate does not hold a cancelled prefetch back."""
    file = tmp_path / "large"
    file.write_bytes(b"x" * (20 << 20))
    began = time.monotonic()

    async def scenario() -> None:
        first = asyncio.Event()
        staging = asyncio.ensure_future(
            stage_file(file, rate_bytes_per_s=1.0, on_progress=lambda _fraction: first.set())
        )
        await first.wait()
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging

    asyncio.run(scenario())
    assert time.monotonic() - began < 60
