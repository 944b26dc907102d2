"""Publishing follows the configuration, and gets what it could not have as soon as it can."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shim import Shim
from shim.config.schema.sections import MetricsSection
from shim.keeper.metrics.publishing import Publishing
from tests.keeper.support import world
from tests.metrics.scrapes import UnixConnection, Watched, read
from tests.processes import alive, wait_until
from tests.races.support import race, run


def test_a_reload_begins_moves_and_ends_what_is_published(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Each look makes it as the configuration says; what is off listens to nothing."""
    first, second = runtime_dir / "1.sock", runtime_dir / "2.sock"

    async def follow() -> None:
        async with race(tiny_models) as it:
            now: dict[str, Any] = {}
            shell, monitor = it.keeper.shell, it.keeper.monitor
            publishing = Publishing(shell, monitor.free_bytes, lambda: MetricsSection(**now))
            for place in (first, second):
                now["prometheus"] = str(place)
                await publishing.look()
                await publishing.look()
                assert [path.exists() for path in (first, second)] == [
                    place is first,
                    place is second,
                ]
                assert len(shell.stories.listeners) == 1
            now.clear()
            await publishing.look()
            assert not second.exists()
            assert shell.stories.listeners == []

    run(follow)


def test_a_port_that_was_taken_is_had_once_it_is_free(tiny_models: dict[str, Path]) -> None:
    """A failed look changes nothing, and the next one tries again."""

    async def follow() -> None:
        async with race(tiny_models) as it:
            with socket.create_server(("127.0.0.1", 0)) as other:
                section = MetricsSection(prometheus=f"127.0.0.1:{other.getsockname()[1]}")
                publishing = Publishing(it.keeper.shell, dict, lambda: section)
                for _ in range(2):
                    with pytest.raises(OSError, match="in use"):
                        await publishing.look()
                assert it.keeper.shell.stories.listeners == []
            await publishing.look()
            assert len(it.keeper.shell.stories.listeners) == 1
            await publishing.close()

    run(follow)


@pytest.mark.real
def test_the_tokens_of_a_real_answer_are_counted(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """llama.cpp's own figures, told by the client at the end of its lease."""
    place = runtime_dir / "metrics.sock"
    config = {
        "budget": {"device": "host"},
        "metrics": {"prometheus": str(place)},
        "models": {"a": {"path": str(tiny_models["classifier"]), "context": 1024}},
    }
    hello = [{"role": "user", "content": "hello"}]
    with Shim(config, inline=True, share=True) as shim:
        usage = [shim.chat("a", hello, max_tokens=9).usage for _ in range(2)]
        seen = Watched(shim, place).scrape()
    sums = (sum(one.prompt_tokens for one in usage), sum(one.completion_tokens for one in usage))
    for kind, total in zip(("input", "output"), sums, strict=True):
        assert seen.of("gen_ai_client_token_usage_sum", gen_ai_token_type=kind) == total > 0
    first_s = seen.of("gen_ai_server_time_to_first_token_seconds_sum")
    assert 0 < first_s <= seen.of("gen_ai_server_request_duration_seconds_sum")


@pytest.mark.real
@pytest.mark.full
def test_a_keeper_that_is_only_scraped_leaves(tiny_models: dict[str, Path]) -> None:
    """A scraper is no client: `idle_exit` goes on, and the model's `keep_alive` ends."""
    with world() as place:
        socket_path = place.root / "m.sock"
        place.configure(
            {"a": {"path": str(tiny_models["classifier"]), "context": 1024, "keep_alive": 1}},
            keeper={"idle_exit": 6},
            metrics={"prometheus": str(socket_path)},
        )
        client = place.client(
            's.chat("a", "Hello.", max_tokens=3)\nsay(pid=s.status()["keeper"]["pid"])'
        )
        pid = client.hear()["pid"]
        client.process.wait(30)
        resident: list[float] = []

        def gone() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                resident.append(
                    read(UnixConnection(socket_path)).of("keepwarm_model_resident_bytes")
                )
            return not alive(pid)

        assert wait_until(gone, 60)
    assert len(resident) > 10
    assert resident[0] > 0
    assert resident[-1] == 0


def test_a_full_disk_keeps_the_metrics_from_their_socket_until_there_is_room(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The keeper goes on: a fault of one kind, tried again at each look, and had once there is room."""
    small = "-t tmpfs -o size=16k,nr_inodes=2"
    if os.geteuid() or subprocess.run(["mount", *small.split(), "none", tmp_path]).returncode:
        pytest.skip("a small file system needs root")
    try:
        (tmp_path / "ballast").touch()
        place = tmp_path / "metrics.sock"

        async def follow() -> None:
            async with race(tiny_models) as it:
                shell, section = it.keeper.shell, MetricsSection(prometheus=str(place))
                publishing = Publishing(shell, dict, lambda: section)
                await publishing.begin()
                with pytest.raises(OSError, match="No space left"):
                    await publishing.look()
                assert [row["count"] for row in shell.faults.rows()] == [1]
                assert shell.stories.listeners == []
                (tmp_path / "ballast").unlink()
                await publishing.look()
                assert place.is_socket()
                await publishing.close()

        run(follow)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
