"""The errors of a llama-server that does not become ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from backends.engine_process.log import looks_out_of_memory
from backends.engine_process.process_engine import ending
from backends.llama.log_facts import refused_device, rpc_was_cut
from backends.llama.rpc.device_names import DeviceNames, names_of, servers_of
from backends.llama.rpc.servers import answers
from backends.machine.devices import is_rpc
from budget.errors import Fact, LoadFailed, OutOfMemory
from budget.footprint import EngineArgs

_QUOTED_LINES = 6


async def load_error(
    model_path: Path,
    code: int,
    lines: Sequence[str],
    log_tail: Sequence[str],
    args: EngineArgs | None,
    program: str = "llama-server",
) -> LoadFailed:
    """The error of an engine that ended while it loaded; `OutOfMemory` when a device refused bytes.

    Args:
        model_path: the model's file.
        code: its exit code; negative: the signal that ended it.
        lines: all kept lines of its log.
        log_tail: the last lines, for the error.
        args: the arguments of the process.
        program: what ran, in messages.
    """
    facts: dict[str, Fact] = {
        "exit_code": code,
        "log_tail": list(log_tail),
        "file": str(model_path),
    }
    cut_off = await _rpc_refused(lines, args)
    if cut_off or looks_out_of_memory(lines):
        names = names_of(args) if args else DeviceNames()
        facts["device"] = _only_rpc_device(args) if cut_off else refused_device(lines, names)
        return OutOfMemory(
            f"{model_path.name} did not load: a device refused the bytes"
            f" ({ending(code)}).\n{_quote(log_tail)}",
            hint="Use fewer layers on that device, a smaller context, or a lower limit.",
            **facts,
        )
    return LoadFailed(
        f"{model_path.name} did not load: {program} {ending(code)}.\n{_quote(log_tail)}",
        hint="The file may be damaged or of an architecture that this build does not know.",
        **facts,
    )


def _only_rpc_device(args: EngineArgs | None) -> str | None:
    """The RPC device of an engine with only one: no log line names it when the server cuts off."""
    named = [device for device in (args.devices if args else ()) if is_rpc(device)]
    return named[0] if len(named) == 1 else None


async def _rpc_refused(lines: Sequence[str], args: EngineArgs | None) -> bool:
    """Whether an RPC server cut the load off and still runs.

    A server does so when it has no memory for a transfer. A server that does not run any more has crashed.
    """
    if args is None or not rpc_was_cut(lines):
        return False
    servers = servers_of(args.rpc)
    return await asyncio.to_thread(lambda: all(map(answers, servers)))


def _quote(lines: Sequence[str]) -> str:
    return "\n".join(f"  | {line}" for line in lines[-_QUOTED_LINES:])
