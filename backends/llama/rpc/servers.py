"""Devices behind `ggml-rpc-server`: llama.cpp's `RPC0`, `RPC1`, ... in the order of `--rpc`.

llama-server itself lists a server's devices (`--list-devices`), in a short process of its own, because it
aborts when an endpoint does not answer or speaks another version of the protocol.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Final

from backends.llama.binaries import find_binary, library_env
from backends.llama.rpc.connections import free_within
from backends.machine.children import ask_child
from backends.machine.devices import Device
from backends.machine.environment import child_environment
from budget.errors import ConfigError, MeasurementFailed

_MIB: Final = 1 << 20
_CONNECT_S: Final = 2.0
_LIST_S: Final = 10.0
_LISTED: Final = re.compile(
    r"^\s*(RPC\d+): (.*) \((\d+) MiB, (\d+) MiB free\)\s*$",
    re.MULTILINE,
)


def answers(endpoint: str, *, timeout_s: float = _CONNECT_S) -> bool:
    """Whether a program accepts a connection at `host:port` within the time-out."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def rpc_devices(endpoints: Sequence[str], *, timeout_s: float = _LIST_S) -> tuple[Device, ...]:
    """The devices that RPC servers offer, in llama.cpp's order.

    Totals and free bytes are the servers' own figures, in whole MiB. `uuid` names the server and the
    device's number there, so that it is the same in every configuration.

    Args:
        endpoints: `host:port` of each server.
        timeout_s: how long all of them together may take.

    Raises:
        ConfigError: an endpoint does not answer, or is no RPC server of this build.
    """
    for endpoint in endpoints:
        if not free_within(endpoint, _CONNECT_S):
            raise ConfigError(
                f"The RPC server at {endpoint} serves another client, and one at a time.",
                hint="Unload the model that uses it, or wait until it has left.",
                endpoint=endpoint,
                busy=True,
            )
        if not answers(endpoint):
            raise _silent(endpoint, "nothing accepts connections there")
    if not endpoints:
        return ()
    listing = _list(endpoints, timeout_s)
    seen: Counter[str] = Counter()
    found = []
    for name, server, total, free in _LISTED.findall(listing):
        uuid = f"rpc-{server}-{seen[server]}"
        seen[server] += 1
        found.append(
            Device(name, "rpc", int(total) * _MIB, int(free) * _MIB, uuid, f"RPC {server}", server)
        )
    if not found:
        raise _silent(", ".join(endpoints), "llama-server lists no device of it")
    return tuple(found)


def _list(endpoints: Sequence[str], timeout_s: float) -> str:
    binary = find_binary("llama-server")
    command = [str(binary), "--rpc", ",".join(endpoints), "--list-devices"]
    env = child_environment(library_env(binary))
    try:
        done = ask_child(command, env, timeout_s)
    except MeasurementFailed as error:
        raise _silent(", ".join(endpoints), error.message) from error
    if done.cut:
        raise _silent(", ".join(endpoints), f"llama-server had no answer after {timeout_s:g} s")
    if done.code:
        lines = (done.log or done.out).strip().splitlines()
        raise _silent(", ".join(endpoints), lines[-1] if lines else f"status {done.code}")
    return done.out + done.log


def _silent(endpoint: str, why: str) -> ConfigError:
    return ConfigError(
        f"No RPC server of this llama.cpp answers at {endpoint}: {why}.",
        hint="Start ggml-rpc-server there (of the same build), or change [budget] rpc.",
        endpoint=endpoint,
    )
