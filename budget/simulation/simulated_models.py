"""The simulated models: how big each is, how long it loads, how fast it answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from budget.books.engines import NO_TIMEOUT, EngineSpec, ModelSpec, PlacementOption
from budget.errors import ConfigError

MOST_BYTES = 2**62
_REQUIRED = ("name", "bytes", "load_fixed_s", "load_bandwidth_bytes_per_s")


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """One model. Loading takes `load_fixed_s + bytes / load_bandwidth_bytes_per_s` seconds."""

    name: str
    bytes: int
    load_fixed_s: float
    load_bandwidth_bytes_per_s: float
    prompt_tokens_per_s: float = 2000.0
    decode_tokens_per_s: float = 50.0
    slots: int = 1
    pinned: bool = False

    @property
    def load_seconds(self) -> float:
        """Seconds that one load takes."""
        return self.load_fixed_s + self.bytes / self.load_bandwidth_bytes_per_s

    def service_seconds(self, prompt_tokens: int, output_tokens: int) -> float:
        """Seconds that a request holds its slot."""
        return prompt_tokens / self.prompt_tokens_per_s + output_tokens / self.decode_tokens_per_s

    def engine(self, devices: Iterable[str]) -> EngineSpec:
        """Its engine, which may be placed on any one of these devices."""
        options = tuple(PlacementOption(((d, self.bytes),), self.load_seconds) for d in devices)
        return EngineSpec(self.name, options, self.slots)

    def entry(self, keep_alive_s: float = NO_TIMEOUT) -> ModelSpec:
        """Its entry in the configuration of the simulated core."""
        return ModelSpec(self.name, self.name, self.pinned, keep_alive_s)


ALLOWED = tuple(field.name for field in fields(SimulatedModel))


def parse_models(data: Mapping[str, Any], source: str) -> list[SimulatedModel]:
    """The models of a file of the form `{"models": [{...}, ...]}`.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong kind, or a name comes twice.
    """
    if set(data) != {"models"}:
        raise ConfigError(
            f"{source}: found the keys {sorted(data)}.", hint="Allowed: one list, `models`."
        )
    if not isinstance(data["models"], list) or not data["models"]:
        raise ConfigError(f"{source}: `models` must be a list of at least one model.")
    found = [_model(row, f"{source}, model {n}") for n, row in enumerate(data["models"], start=1)]
    twice = sorted(n for n, times in Counter(model.name for model in found).items() if times > 1)
    if twice:
        raise ConfigError(f"{source}: {', '.join(twice)} is named twice.")
    return found


def _model(row: object, where: str) -> SimulatedModel:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: found {row!r} where a table should be.")
    unknown, missing = sorted(set(row) - set(ALLOWED)), sorted(set(_REQUIRED) - set(row))
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown keys {unknown}, missing keys {missing}.",
            hint=f"Allowed: {', '.join(ALLOWED)}; the last four may be left out.",
        )
    name, pinned = row["name"], row.get("pinned", False)
    if not isinstance(name, str) or not name or not isinstance(pinned, bool):
        raise ConfigError(f"{where}: name {name!r} must be a text and pinned {pinned!r} a boolean.")
    values: dict[str, Any] = {"name": name, "pinned": pinned}
    for key in ("bytes", "slots"):
        if key in row:
            values[key] = _whole(row[key], f"{where}: {key}")
    for key in ALLOWED[2:6]:
        if key in row:
            values[key] = _number(row[key], f"{where}: {key}", zero=key == "load_fixed_s")
    return SimulatedModel(**values)


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_BYTES:
        raise ConfigError(f"{what} is {str(value)[:40]}; a whole number of 1 or more is needed.")
    return value


def _number(value: object, what: str, *, zero: bool) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        wanted = "of 0 or more" if zero else "above 0"
        raise ConfigError(f"{what} is {str(value)[:40]}; a finite number {wanted} is needed.")
    return number
