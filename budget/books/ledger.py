"""The books: what is reserved on every device, by holder. They balance after every event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from budget.books.engines import Bookings
from budget.errors import InternalError

UNJUDGED_AT_MOST_S = 30.0
"""So long a device may go without a judgement because engines load or leave there all the time."""


class Hold(Enum):
    """How firmly booked bytes are held."""

    PROTECTED = "protected"
    EVICTABLE = "evictable"
    LEAVING = "leaving"

    # Members are single and compared by identity; Enum's own hash is a Python call each time.
    __hash__ = object.__hash__


# Looking a member up on its Enum is slow before Python 3.12, and every lease moves bytes twice.
PROTECTED: Final = Hold.PROTECTED
EVICTABLE: Final = Hold.EVICTABLE
LEAVING: Final = Hold.LEAVING


@dataclass(frozen=True, slots=True)
class LedgerView:
    """One device's books at one moment, in bytes.

    `reserved = protected + evictable` and `free = limit - reserved`; `ceiling` is the lower of the
    limit and what the device was measured to have room for; `leaving` is the part of `protected`
    whose engines are being evicted.
    """

    device: str
    limit_bytes: int
    ceiling_bytes: int
    protected_bytes: int
    evictable_bytes: int
    leaving_bytes: int

    @property
    def reserved_bytes(self) -> int:
        """Everything booked."""
        return self.protected_bytes + self.evictable_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the limit; negative only after a correction."""
        return self.limit_bytes - self.reserved_bytes


class Ledger:
    """The books of one device."""

    __slots__ = (
        "_ceiling_bytes",
        "_held",
        "_limit_bytes",
        "_settings",
        "asleep_bytes",
        "available_bytes",
        "coming_bytes",
        "device",
        "over_limit",
        "reserved_bytes",
        "room_bytes",
        "unjudged_since",
    )

    def __init__(self, device: str, limit_bytes: int, settings: list[int]) -> None:
        self.device = device
        self._settings = settings
        self._limit_bytes = limit_bytes
        self._ceiling_bytes = limit_bytes
        self.available_bytes: int | None = None
        """What the device was last measured to have room for; None when that is not known."""
        self.asleep_bytes = 0
        """What engines hold that are asleep; it is no booking, and lowers the ceiling."""
        self.unjudged_since: float | None = None
        """The time of the first measurement that could not be judged; None when the last one was."""
        self.over_limit = False
        self._held = dict.fromkeys(Hold, 0)
        self.reserved_bytes = 0
        """Everything booked."""
        self.room_bytes = limit_bytes
        """What admission may still book: the smaller of ledger and measurement."""
        self.coming_bytes = limit_bytes
        """What admission may book once every engine that is being evicted has left."""

    @property
    def limit_bytes(self) -> int:
        """What the operator allows."""
        return self._limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, amount: int) -> None:
        self._limit_bytes = amount
        self._settings[0] += 1

    @property
    def ceiling_bytes(self) -> int:
        """The lower of the limit and what the device was measured to have room for."""
        return self._ceiling_bytes

    @ceiling_bytes.setter
    def ceiling_bytes(self, amount: int) -> None:
        self._ceiling_bytes = amount
        self._settings[0] += 1
        self._settle()

    @property
    def leaving_bytes(self) -> int:
        """Booked by engines that are being evicted."""
        return self._held[LEAVING]

    def change(self, hold: Hold, amount: int) -> None:
        """Add `amount` bytes (negative to give back) to a kind of hold."""
        self._held[hold] += amount
        self.reserved_bytes += amount
        self._settle()

    def move(self, before: Hold, after: Hold, amount: int) -> None:
        """Hold `amount` bytes otherwise than before."""
        held = self._held
        held[before] -= amount
        held[after] += amount
        if before is LEAVING or after is LEAVING:
            self.coming_bytes = self.room_bytes + held[LEAVING]

    def clear(self) -> None:
        """Nothing is booked."""
        self._held = dict.fromkeys(Hold, 0)
        self.reserved_bytes = 0
        self._settle()

    def _settle(self) -> None:
        self.room_bytes = self._ceiling_bytes - self.reserved_bytes
        self.coming_bytes = self.room_bytes + self._held[LEAVING]

    def view(self) -> LedgerView:
        """The books now."""
        held = self._held
        return LedgerView(
            self.device,
            self.limit_bytes,
            self.ceiling_bytes,
            held[PROTECTED] + held[LEAVING],
            held[EVICTABLE],
            held[LEAVING],
        )


class Books:
    """Every device's ledger, by holder. A booking stands on all its devices or on none."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._settings = [0]
        self.ledgers = {
            device: Ledger(device, limit, self._settings) for device, limit in limits.items()
        }
        self._entries: dict[str, tuple[Bookings, Hold]] = {}

    def __getitem__(self, device: str) -> Ledger:
        return self.ledgers[device]

    @property
    def settings_version(self) -> int:
        """Changes whenever a limit or ceiling may have changed."""
        return self._settings[0]

    @property
    def most_coming_bytes(self) -> int:
        """The most that one device has room for, once what is being evicted has left."""
        return max([ledger.coming_bytes for ledger in self.ledgers.values()], default=0)

    def __iter__(self) -> Iterator[Ledger]:
        return iter(self.ledgers.values())

    def __contains__(self, device: object) -> bool:
        return device in self.ledgers

    def entry(self, holder: str) -> tuple[Bookings, Hold] | None:
        """What a holder has booked and how firmly, or None."""
        return self._entries.get(holder)

    def book(self, holder: str, bookings: Bookings) -> None:
        """Book bytes as protected on every device named.

        Raises:
            InternalError: the holder has a booking, or the bytes pass a device's room.
        """
        if holder in self._entries:
            raise InternalError(f"{holder} is booked already: {self._entries[holder]}")
        for device, amount in bookings:
            room = self.ledgers[device].room_bytes
            if amount > room:
                raise InternalError(
                    f"{holder}: booking {amount} bytes on {device} with room {room}"
                )
        for device, amount in bookings:
            self.ledgers[device].change(PROTECTED, amount)
        self._entries[holder] = (bookings, PROTECTED)

    def hold(self, holder: str, hold: Hold) -> None:
        """Move a holder's bytes to another kind of hold."""
        bookings, before = self._entries[holder]
        if before is hold:
            return
        ledgers = self.ledgers
        for device, amount in bookings:
            ledgers[device].move(before, hold, amount)
        self._entries[holder] = (bookings, hold)

    def release(self, holder: str) -> Bookings:
        """Give all of a holder's bytes back; returns them."""
        bookings, hold = self._entries.pop(holder)
        for device, amount in bookings:
            self.ledgers[device].change(hold, -amount)
        return bookings

    def correct(self, holder: str, bookings: Bookings) -> None:
        """Replace a holder's bytes by measured ones; the limit may be passed by this alone."""
        before, hold = self._entries[holder]
        for device, amount in before:
            self.ledgers[device].change(hold, -amount)
        for device, amount in bookings:
            self.ledgers[device].change(hold, amount)
        self._entries[holder] = (bookings, hold)

    def rebuild(self, entries: Mapping[str, tuple[Bookings, Hold]]) -> None:
        """Open every ledger anew with these entries and no others."""
        self._entries = dict(entries)
        for ledger in self:
            ledger.clear()
            for bookings, hold in entries.values():
                for device, amount in bookings:
                    if device == ledger.device:
                        ledger.change(hold, amount)

    def imbalances(self) -> Iterator[str]:
        """Every ledger that does not equal the sum of its entries, in words."""
        for ledger in self:
            sums = dict.fromkeys(Hold, 0)
            for bookings, hold in self._entries.values():
                sums[hold] += sum(amount for device, amount in bookings if device == ledger.device)
            view = ledger.view()
            found = (view.protected_bytes - view.leaving_bytes, view.evictable_bytes)
            sound = ledger.reserved_bytes == view.reserved_bytes
            sound = sound and ledger.room_bytes == ledger.ceiling_bytes - ledger.reserved_bytes
            sound = sound and ledger.coming_bytes == ledger.room_bytes + view.leaving_bytes
            if not sound or (*found, view.leaving_bytes) != tuple(sums.values()):
                yield f"{ledger.device} does not balance: {view} against {sums}"
