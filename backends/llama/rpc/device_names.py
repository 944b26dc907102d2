"""Translates between llama.cpp's names of an engine's devices and ours.

llama.cpp counts RPC devices from 0 in each process, over the servers in that process's arguments:
`RPC1` of ours is `RPC0` to an engine that uses no other server. Buffers carry the server's address and
the device's number there (`RPC0[127.0.0.1:50052]`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backends.machine.devices import device_name, llama_device_names
from budget.errors import ConfigError
from budget.footprint import HOST, EngineArgs

_RPC_BUFFER: Final = re.compile(r"RPC(\d+)\[(.+?)\]?")
_RPC_NAME: Final = re.compile(r"RPC(\d+)")
_GPU_BUFFER: Final = re.compile(r"(CUDA\d+)(?:_Split)?")


def servers_of(rpc: Sequence[str]) -> list[str]:
    """The servers in an engine's `--rpc`, each once, in order."""
    return list(dict.fromkeys(server for server in rpc if server))


@dataclass(frozen=True, slots=True)
class DeviceNames:
    """Translates for one engine; `rpc` is that of its arguments."""

    rpc: tuple[str, ...] = ()

    def llama(self, devices: Sequence[str]) -> list[str]:
        """The value of `--device`: see `backends.machine.devices.llama_device_names`.

        Raises:
            ConfigError: an RPC device has no server in the arguments.
        """
        local = self._local()
        found = []
        for name in llama_device_names(devices):
            if _RPC_NAME.fullmatch(name) is None:
                found.append(name)
            elif name in local:
                found.append(local[name])
            else:
                raise ConfigError(
                    f"no RPC server is named for device {name}.",
                    hint="Name the server of every RPC device, in order.",
                    device=name,
                    rpc=list(self.rpc),
                )
        return found

    def ours(self, llama_name: str) -> str:
        """Our name of a device, by llama.cpp's name."""
        by_local = {local: name for name, local in self._local().items()}
        return by_local.get(llama_name) or device_name(llama_name)

    def of_buffer(self, buffer_name: str) -> str:
        """The device that a llama.cpp buffer lies on.

        `CPU`, `CPU_REPACK`, `CPU_Mapped` and pinned `CUDA_Host` are `host`; `CUDA0` is `cuda:0`;
        for `RPC0[127.0.0.1:50052]` the address names the server.
        """
        base = buffer_name.partition("[")[0]
        if base.startswith("CPU") or base.endswith("_Host") or base in {"AMX", "BLAS"}:
            return HOST
        remote = _RPC_BUFFER.fullmatch(buffer_name)
        if remote is not None:
            places = [n for n, server in enumerate(self.rpc) if server == remote[2]]
            number = int(remote[1])
            return f"RPC{places[number]}" if number < len(places) else base
        gpu = _GPU_BUFFER.fullmatch(base)
        return device_name(gpu[1]) if gpu else base

    def _local(self) -> dict[str, str]:
        """llama.cpp's names by ours; the devices of one server are adjacent, in the order of servers."""
        places = [
            number
            for server in servers_of(self.rpc)
            for number, other in enumerate(self.rpc)
            if other == server
        ]
        return {f"RPC{number}": f"RPC{local}" for local, number in enumerate(places)}


def names_of(args: EngineArgs) -> DeviceNames:
    """The names of one engine."""
    return DeviceNames(args.rpc)
