"""Looking at a keeper must not keep it alive."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shim.config import Config
from shim.keeper.keeper import Keeper
from shim.keeper.server.server import Server
from shim.paths import keeper_socket
from shim.wire.json_lines import VERSION, decode, encode


async def say(runtime: Path, server: Server, *ops: dict[str, object]) -> tuple[bool, bool]:
    """Say ops on a connection and close it: whether the keeper was in use meanwhile, and now."""
    reader, writer = await asyncio.open_unix_connection(keeper_socket(runtime))
    for number, op in enumerate(ops):
        writer.write(encode({"id": number, **op}))
        assert "ok" in decode(await reader.readline())
    meanwhile = server.clients.in_use
    writer.close()
    await writer.wait_closed()
    while server.clients.by_id:  # noqa: ASYNC110 - the server has no event for a client's end
        await asyncio.sleep(0)
    return meanwhile, server.clients.in_use


async def visit(runtime: Path) -> None:
    """A looker first, a client that asks for something next."""
    keeper = await Keeper.create(Config.from_mapping({"budget": {"device": "host"}}), runtime)
    server = Server(keeper, asyncio.Event())
    try:
        server.listen(keeper_socket(runtime))
        server.clients.idle_since = before = -1.0
        look: tuple[dict[str, object], ...] = (
            {"op": "hello", "version": VERSION},
            {"op": "status"},
        )
        assert await say(runtime, server, *look) == (False, False)
        history: dict[str, object] = {"op": "history", "since_ns": 0, "until_ns": 1}
        assert await say(runtime, server, history) == (False, False)
        assert server.clients.idle_since == before
        assert await say(runtime, server, *look, {"op": "plan", "models": []}) == (True, False)
        assert server.clients.idle_since > before
    finally:
        server.close()
        await keeper.close()


def test_looking_resets_no_time_out_and_counts_as_no_client(runtime_dir: Path) -> None:
    """`ps`, `keeper status` and a trace's end leave idle_exit alone; asking for anything does not."""
    asyncio.run(asyncio.wait_for(visit(runtime_dir), 60))
