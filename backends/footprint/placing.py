"""The possible placements of a model, best first: whole on one device, spread over several, split, CPU.

Every placement that is offered was measured (or computed, on request) and fits its devices' limits. Among
placements of one tier the core chooses a device that has room.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Final, Literal

from backends.footprint.inspect import Inspector, RequestedSource
from backends.footprint.shares import Shares, balanced, most_layers
from backends.gguf.header import GgufHeader
from budget.books.byte_text import size
from budget.errors import ConfigError, MeasurementFailed, NeverFits
from budget.footprint import HOST, EngineArgs, Footprint, Placement

Layers = int | Literal["auto"]

WHOLE, SPREAD, SPLIT, SPARE, CPU = range(5)
"""The tiers of placements, the preferred first."""

_SETS: Final = 6
"""The most sets of devices of one size that are tried."""
_MOST_MEASUREMENTS: Final = 3
"""The most measurements for one division over several devices."""


def placements(
    inspector: Inspector,
    header: GgufHeader,
    args: EngineArgs,
    limits: Mapping[str, int],
    *,
    n_gpu_layers: Layers = "auto",
    source: RequestedSource = "auto",
) -> list[Placement]:
    """Placements to try, best first; those of one `tier` are equally good.

    `limits` are the bytes of each device that layers may go to, in order; the host is always there.
    With `auto`: whole on each device that holds it; spread over the fewest devices that do; else the
    most layers that all devices together hold, and half of those (for a device that refuses bytes); the
    CPU alone. A number of layers is honoured exactly.

    Raises:
        ConfigError: layers are asked for on the host, or more than there are.
        NeverFits: the explicit number of layers passes the limits.
        BadModelFile, MeasurementFailed: as for `Inspector.placement`.
    """
    placer = _Placer(
        inspector, header, args, source, {d: n for d, n in limits.items() if d != HOST}
    )
    if n_gpu_layers == 0 or (n_gpu_layers == "auto" and not placer.limits):
        return [placer.cpu()]
    if n_gpu_layers != "auto":
        return placer.exactly(n_gpu_layers)
    return placer.automatic()


def excess(
    inspector: Inspector,
    header: GgufHeader,
    args: EngineArgs,
    limits: Mapping[str, int],
    *,
    n_gpu_layers: Layers = "auto",
) -> int:
    """Bytes by which a model exceeds the limits in its best unsplit placement; at most 0 if it fits.

    Such a placement is whole on a device or spread over several (with the layers that are asked for), or on
    the host if there is no other device.

    Raises:
        BadModelFile, MeasurementFailed: as for `Inspector.placement`.
    """
    bounds = {d: n for d, n in limits.items() if d != HOST}
    placer = _Placer(inspector, header, args, "auto", bounds)
    if not bounds or n_gpu_layers == 0:
        return bytes_on(placer.cpu(), HOST) - limits[HOST]
    layers = placer.everything if n_gpu_layers == "auto" else n_gpu_layers
    least = min(placer.missing(placer.at(layers, (device,))) for device in bounds)
    return 0 if least > 0 and placer.spread(layers) else least


def bytes_on(placement: Placement, device: str) -> int:
    """The bytes of a placement on a device."""
    return placement.footprints.get(device, Footprint()).total_bytes


@dataclass(frozen=True, slots=True)
class _Placer:
    """Makes the placements of one model on devices with these limits (without the host)."""

    inspector: Inspector
    header: GgufHeader
    args: EngineArgs
    source: RequestedSource
    limits: Mapping[str, int]

    @property
    def everything(self) -> int:
        """The number of all layers, with the output layer."""
        return self.header.shape().n_layers + 1

    def cpu(self) -> Placement:
        """The placement on the CPU alone."""
        return replace(self.inspector.on_host(self.header, self.args, self.source), tier=CPU)

    def automatic(self) -> list[Placement]:
        """The placements of all tiers."""
        whole = [p for p in (self.on_one(d) for d in self.limits) if p is not None]
        found = [*whole]
        # A model that fits whole needs no spread, so a failure to compute one is ignored.
        with contextlib.suppress(*([MeasurementFailed] if whole else [])):
            found += self.spread(self.everything)
        if not found:
            found = self.split()
        if found and (len(self.limits) == 1 or not whole):
            found += self.spare(found[0])
        return [*found, self.cpu()]

    def exactly(self, layers: int) -> list[Placement]:
        """Placements of so many layers: on each device that holds them, else spread over several."""
        if not self.limits:
            raise ConfigError(
                f"n_gpu_layers is {layers} and the device is the host.",
                hint="Set n_gpu_layers to 0 or auto, or choose a GPU.",
                n_gpu_layers=layers,
            )
        tried = [self.at(layers, (device,)) for device in self.limits]
        alone = [p for p in tried if self.fits(p)]
        found = alone or self.spread(layers)
        if found:
            return [replace(p, tier=WHOLE) for p in found]
        raise self._never(min(tried, key=self.missing), layers)

    def at(self, layers: int, devices: tuple[str, ...], split: tuple[int, ...] = ()) -> Placement:
        """The placement of so many layers on these devices."""
        args = replace(self.args, n_gpu_layers=layers, devices=devices, tensor_split=split)
        return self.inspector.placement(self.header, args, devices[0], self.source)

    def fits(self, placement: Placement) -> bool:
        """Whether every device holds its part when it is otherwise empty."""
        return self.missing(placement) <= 0

    def missing(self, placement: Placement) -> int:
        """The most bytes by which it exceeds the limit of any device."""
        return max(bytes_on(placement, d) - limit for d, limit in self.limits.items())

    def on_one(self, device: str) -> Placement | None:
        """The placement whole on a device, or None if it does not fit."""
        found = self.at(self.everything, (device,))
        if not self.fits(found):
            return None
        text = f"fits whole: {bytes_on(found, device)} of {self.limits[device]} bytes"
        return _because(found, WHOLE, text if len(self.limits) == 1 else f"{text} on {device}")

    def spread(self, layers: int) -> list[Placement]:
        """Placements of so many layers over the fewest devices that hold them, one for each set."""
        for count in range(2, min(len(self.limits), layers) + 1):
            tried = (
                self.divided(layers, devices)
                for devices in islice(combinations(self.limits, count), _SETS)
            )
            found = [p for p in tried if p is not None]
            if found:
                return [_because(p, SPREAD, _spread_note(p)) for p in found]
        return []

    def divided(self, layers: int, devices: Sequence[str]) -> Placement | None:
        """The placement of so many layers over these devices, each filled to the same share."""
        shares = Shares.of(self.header.shape(), self.args, devices)
        room = {d: float(self.limits[d]) for d in devices}
        for _ in range(_MOST_MEASUREMENTS):
            counts = balanced(shares.sizes(layers), list(room.values()))
            found = self.at(layers, tuple(devices), counts or shares.even(layers))
            if counts is not None and self.fits(found):
                return found
            # The bytes of a device beside its layers are known by now.
            room = {d: self.limits[d] - self._beside(found, d, shares) for d in devices}
            if min(room.values()) <= 0:
                return None
        return None

    def _beside(self, placement: Placement, device: str, shares: Shares) -> float:
        return bytes_on(placement, device) - shares.layers_of(placement, device)

    def split(self) -> list[Placement]:
        """Placements with the most layers that the devices hold; the rest is on the CPU."""
        best = self._most_on_one() if len(self.limits) == 1 else self._most_on_all()
        if best is None:
            return []
        on = ", ".join(f"{size(limit)} on {d}" for d, limit in self.limits.items())
        text = f"{best.args.n_gpu_layers} of {self.everything} layers fit {on}"
        return [_because(best, SPLIT, text)]

    def _most_on_one(self) -> Placement | None:
        (device,) = self.limits
        best, low, high = None, 1, self.everything - 1
        while low <= high:
            middle = (low + high) // 2
            tried = self.at(middle, (device,))
            if self.fits(tried):
                best, low = tried, middle + 1
            else:
                high = middle - 1
        return best

    def _most_on_all(self) -> Placement | None:
        devices = tuple(self.limits)
        shares = Shares.of(self.header.shape(), self.args, devices)
        # Any split shows the bytes of devices beside their layers; a split with all layers takes more.
        layers = self.everything - 1
        tried = self.at(layers, devices, shares.even(layers))
        for _ in range(_MOST_MEASUREMENTS):
            room = [self.limits[d] - self._beside(tried, d, shares) for d in devices]
            layers = min(layers, most_layers(shares, room))
            if not layers:
                return None
            counts = balanced(shares.sizes(layers), room)
            tried = self.at(layers, devices, counts or shares.even(layers))
            if self.fits(tried):
                return tried
            layers -= 1
        return None

    def spare(self, best: Placement) -> list[Placement]:
        """Placements with half of the layers on the same devices."""
        fewer = best.args.n_gpu_layers // 2
        if not fewer:
            return []
        devices = best.args.layer_devices
        if len(devices) == 1:
            found: Placement | None = self.at(fewer, devices)
        else:
            found = self.divided(fewer, devices) if fewer >= len(devices) else None
        return [_because(found, SPARE, f"{fewer} of {self.everything} layers")] if found else []

    def _never(self, placement: Placement, layers: int) -> NeverFits:
        device = max(self.limits, key=lambda d: bytes_on(placement, d) - self.limits[d])
        needed, limit = bytes_on(placement, device), self.limits[device]
        return NeverFits(
            f"{self.header.name} with {layers} layers needs {needed} bytes on {device}, whose "
            f"limit is {limit}.",
            hint="Set n_gpu_layers to auto or fewer, or raise the limit.",
            model=self.header.name,
            device=device,
            limit_bytes=limit,
            reserved_bytes=0,
            requested_bytes=needed,
        )


def _spread_note(placement: Placement) -> str:
    parts = zip(placement.args.layer_devices, placement.args.tensor_split, strict=False)
    return "spread, layers " + ", ".join(f"{count} on {device}" for device, count in parts)


def _because(placement: Placement, tier: int, reason: str) -> Placement:
    """The placement with a tier and a reason, which is added to the note of a correction."""
    note = "; ".join(text for text in (reason, placement.reason) if text)
    return replace(placement, tier=tier, reason=note)
