"""The devices that a keeper budgets, and how many bytes of each may be booked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.llama.rpc.device_names import servers_of
from backends.llama.rpc.servers import rpc_devices
from backends.machine.devices import Device, discover, is_rpc
from backends.machine.gpus import VARIABLE, visible
from budget.books.engines import Bookings
from budget.errors import ConfigError
from budget.footprint import HOST, Placement
from budget.memory.split import used_servers
from shim.config import Config
from shim.config.schema.device_values import DeviceShare
from shim.config.schema.sections import BudgetSection

SEAT = " client"
"""The suffix of an RPC server's address in the books, for its one connection."""


def seat(server: str) -> str:
    """The name in the books of an RPC server's one connection."""
    return f"{server}{SEAT}"


def bookings_of(placement: Placement) -> Bookings:
    """The bookings of a placement: its bytes, and the connection of every RPC server that it uses.

    The connection is booked because `ggml-rpc-server` serves one client at a time: a second engine would
    wait for the first to end.
    """
    servers = servers_of(placement.args.rpc)
    return tuple(sorted([*placement.bookings, *((seat(server), 1) for server in servers)]))


@dataclass(frozen=True, slots=True)
class BudgetDevices:
    """The budgeted devices and their limits.

    `devices` are those that layers may go to, in the order of the configuration, or the host alone.
    `limits` and `reserves` are bytes by device, always with the host's. `remote` are all devices of the
    configured RPC servers, in order.
    """

    devices: tuple[Device, ...]
    limits: Mapping[str, int]
    reserves: Mapping[str, int]
    remote: tuple[Device, ...] = ()

    @property
    def first(self) -> Device:
        """The first device, for messages that name only one."""
        return self.devices[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The devices' names."""
        return tuple(device.name for device in self.devices)

    @property
    def layer_limits(self) -> dict[str, int]:
        """The limits of the devices that layers may go to, without the host."""
        return {name: self.limits[name] for name in self.names if name != HOST}

    @property
    def pools(self) -> dict[str, int]:
        """The limits in the core's form: bytes by device, and one connection by RPC server."""
        return {**self.limits, **{seat(server): 1 for server in servers_of(self.servers())}}

    def servers(self, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """The value of `EngineArgs.rpc` for these devices; by default for all budgeted ones."""
        rpc = tuple(device.server for device in self.remote)
        return used_servers(rpc, self.names if names is None else names)


def budget_devices(config: Config, previous: BudgetDevices | None = None) -> BudgetDevices:
    """The devices that a configuration budgets on this machine.

    RPC servers that `previous` knows are not asked again, because an engine may be connected and they
    serve one client at a time.

    Raises:
        ConfigError: a configured device does not exist here, or is named twice.
    """
    budget = config.budget
    remote = _remote(budget, previous)
    found = [*_here(), *remote]
    shares = _present(budget, found)
    layered = [device for device, _ in shares if device.name != HOST]
    host = next(device for device in found if device.name == HOST)
    limits = {HOST: host.total_bytes - budget.reserve_bytes(host.total_bytes)}
    reserves = {HOST: budget.reserve_bytes(host.total_bytes)}
    for device, share in shares:
        limits[device.name] = budget.limit_bytes(device.total_bytes, share)
        reserves[device.name] = budget.reserve_bytes(device.total_bytes, share)
    return BudgetDevices(tuple(layered) or (host,), limits, reserves, remote)


def _here() -> list[Device]:
    """The host and the GPUs that this process may use."""
    found = discover()
    gpus = visible([d for d in found if d.kind == "cuda"], os.environ.get(VARIABLE))
    return [device for device in found if device.kind != "cuda" or device in gpus]


def _remote(budget: BudgetSection, previous: BudgetDevices | None) -> tuple[Device, ...]:
    if previous is not None and previous.remote:
        asked = tuple(dict.fromkeys(device.server for device in previous.remote))
        if asked == budget.rpc:
            return previous.remote
    return rpc_devices(budget.rpc) if any(is_rpc(s.device) for s in budget.shares) else ()


def _present(
    budget: BudgetSection, found: Sequence[Device]
) -> list[tuple[Device, DeviceShare | None]]:
    """The configured devices that were found, with the shares that the configuration gives them."""
    by_name = {**{d.uuid: d for d in found if d.kind == "cuda"}, **{d.name: d for d in found}}
    if budget.devices is None and budget.device == "auto":
        gpus = [device for device in found if device.kind == "cuda"]
        return [(device, None) for device in gpus or [by_name[HOST]]]
    present: dict[str, tuple[Device, DeviceShare | None]] = {}
    for share in budget.shares:
        device = by_name.get(share.device)
        if device is None:
            raise ConfigError(
                f"[budget] {'device is' if budget.devices is None else 'devices has'} "
                f"{share.device!r}; this machine has {', '.join(sorted(d.name for d in found))}.",
                hint='Choose among these, or device = "auto".',
                device=share.device,
                devices=sorted(d.name for d in found),
            )
        if device.name in present:
            raise ConfigError(
                f"[budget] devices has {device.name} twice, once by its UUID {device.uuid}.",
                hint="Name it once.",
                device=device.name,
            )
        present[device.name] = device, share
    return list(present.values())
