"""Devices as people write them in a configuration: one, several with their limits, RPC servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from shim.config.schema.values import (
    AMOUNT_JSON,
    TEXT_JSON,
    TEXTS,
    Amount,
    matching,
    parse_limit,
    parse_path,
    parse_reserve,
)

MAX_PORT = 65535
MAX_RPC_SERVERS = 16
"""As many as llama.cpp takes (`GGML_RPC_MAX_SERVERS`)."""
_ONE_DEVICE = r"host|cuda:(?:0|[1-9][0-9]{0,3})|RPC(?:0|[1-9][0-9]?)|GPU-[0-9A-Za-z-]{1,64}"
_DEVICE = re.compile(f"auto|{_ONE_DEVICE}", re.ASCII)
_NAMED_DEVICE = re.compile(_ONE_DEVICE, re.ASCII)
_RPC = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?:([1-9][0-9]{0,4})", re.ASCII)
_DEVICE_JSON = "host|cuda:[0-9]+|RPC[0-9]+|GPU-[0-9A-Za-z-]+"
_NAMED_JSON = {"type": "string", "pattern": f"^({_DEVICE_JSON})$"}
_SHARE_JSON: dict[str, Any] = {
    "anyOf": [
        _NAMED_JSON,
        {
            "type": "object",
            "properties": {
                "device": _NAMED_JSON,
                "limit": AMOUNT_JSON.json_schema,
                "reserve": AMOUNT_JSON.json_schema,
            },
            "required": ["device"],
            "additionalProperties": False,
        },
    ]
}


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """One of several devices, with its own limit and reserve where they are given."""

    device: str
    limit: Amount | None = None
    reserve: Amount | None = None

    def to_data(self) -> str | dict[str, str]:
        """The share as a file writes it."""
        own = {"limit": self.limit, "reserve": self.reserve}
        given = {name: str(amount) for name, amount in own.items() if amount is not None}
        return {"device": self.device, **given} if given else self.device

    def __str__(self) -> str:
        return str(self.to_data())


def parse_devices(value: object) -> tuple[DeviceShare, ...]:
    """Devices, each a name or a table of device, limit and reserve; no two the same."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("not a list of devices")
    found = tuple(_device_share(item) for item in value)
    names = [share.device for share in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'device "{twice}" is named twice')
    return found


def _device_share(item: object) -> DeviceShare:
    if isinstance(item, DeviceShare):
        return item
    data = {"device": item} if isinstance(item, str) else item
    if not isinstance(data, Mapping) or not {"device"} <= set(data) <= set(_SHARE_KEYS):
        raise ValueError(f"{str(item)[:80]!r} is neither a device nor a table of one")
    name = data["device"]
    if not isinstance(name, str) or _NAMED_DEVICE.fullmatch(name) is None:
        raise ValueError(f"{str(name)[:80]!r} is not a device")
    given = {key: parse for key, parse in _SHARE_KEYS.items() if parse and key in data}
    try:
        return DeviceShare(name, **{key: parse(data[key]) for key, parse in given.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


_SHARE_KEYS: Mapping[str, Callable[[object], Amount] | None] = {
    "device": None,
    "limit": parse_limit,
    "reserve": parse_reserve,
}


def parse_rpc(value: object) -> tuple[str, ...]:
    """Endpoints of RPC servers, `host:port` each, no two the same."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("not a list of endpoints")
    for item in value:
        match = _RPC.fullmatch(item) if isinstance(item, str) else None
        if match is None or int(match[1]) > MAX_PORT:
            raise ValueError(f"{str(item)[:80]!r} is not host:port")
    if len(set(value)) < len(value):
        raise ValueError("an endpoint is named twice")
    if len(value) > MAX_RPC_SERVERS:
        raise ValueError(f"{len(value)} endpoints")
    return tuple(value)


def parse_scrape_place(value: object, info: ValidationInfo) -> str:
    """`host:port`, or the absolute path of a Unix socket."""
    if isinstance(value, str) and "/" in value:
        return str(parse_path(value, info))
    return parse_rpc([value])[0]


Device = Annotated[
    str,
    PlainValidator(matching(_DEVICE, "not a device")),
    WithJsonSchema({"type": "string", "pattern": f"^(auto|{_DEVICE_JSON})$"}),
]
Devices = Annotated[
    tuple[DeviceShare, ...],
    PlainValidator(parse_devices),
    PlainSerializer(lambda shares: [share.to_data() for share in shares]),
    WithJsonSchema({"type": "array", "minItems": 1, "items": _SHARE_JSON}),
]
RpcEndpoints = Annotated[
    tuple[str, ...],
    PlainValidator(parse_rpc),
    TEXTS,
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"type": "string"}}),
]
ScrapePlace = Annotated[str, PlainValidator(parse_scrape_place), TEXT_JSON]
