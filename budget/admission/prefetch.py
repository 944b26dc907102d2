"""Looking ahead: the next declared uses are staged, and loaded if they fit beside the engines in use.

A prefetch takes only bytes that no request needs now. It books free bytes, or those of idle engines
whose own next declared use is later; it holds no claim, so every request passes it; while it loads
it is abandoned for any request, and once loaded it is the first to go when a device is short.
"""

from __future__ import annotations

from collections.abc import Set

from budget.actions import EvictionCandidate, StageFile, StopStaging
from budget.admission.admission import Choice
from budget.admission.state import PREFETCH, CoreState, Staging
from budget.books.claims import Claim
from budget.books.engines import EngineRecord
from budget.books.queue import Rank
from budget.books.states import DORMANT, State

LOOKAHEAD = 256
"""Declared uses that are looked at; what comes later counts as never."""
STAGED_AHEAD = 2
"""Files that may lie staged and not loaded: more would only push one another out of RAM."""
LAST: Rank = (2, 0, 0)


class Prefetcher:
    """Stages and loads ahead; runs at the end of every pump."""

    def __init__(self, state: CoreState) -> None:
        self._state = state
        self._staged: set[str] = set()
        """Engines whose files were read to the end and that have not been loaded since."""
        self._read: dict[str, int] = {}
        """Bytes that staging read for engines that have not been loaded since."""

    @property
    def staging(self) -> str | None:
        """The engine whose file is being staged, or None."""
        return self._state.staging.engine_id if self._state.staging else None

    @property
    def busy(self) -> bool:
        """Whether a file is being staged, or one that was lies there unused."""
        return self._state.staging is not None or bool(self._read)

    @property
    def lying_staged(self) -> Set[str]:
        """The engines whose files were read to the end and that have not been loaded since."""
        return self._staged

    def staged(self, engine_id: str, read_bytes: int) -> None:
        """A staging ended, or was stopped."""
        staging = self._state.staging
        if staging is None or staging.engine_id != engine_id:
            return
        if not staging.stopped:
            self._staged.add(engine_id)
        self._state.staging = None
        self._state.prefetch.staged_bytes += read_bytes
        self._read[engine_id] = self._read.get(engine_id, 0) + read_bytes

    def forget(self, now: float) -> None:
        """Let go of engines that are not declared any more.

        The keep_alive of one that was loaded ahead begins now; a file that was staged was read in vain.
        """
        state = self._state
        if not (self._read or state.prefetched):
            return
        nexts = self._nexts()
        for engine_id, engine in state.prefetched.items():
            if engine_id not in nexts and engine.state is State.IDLE and not engine.used_since_load:
                engine.used_since_load = True
                engine.idle_since = now
                state.restless[engine_id] = engine
        for engine_id in list(self._read):
            known = engine_id in state.residents
            if known and state.residents[engine_id].state not in DORMANT:
                del self._read[engine_id]
            elif engine_id not in nexts:
                state.prefetch.wasted_bytes += self._read.pop(engine_id)
        self._staged &= self._read.keys()

    def look_ahead(self, now: float) -> None:
        """Start the next prefetch if one is due; stop a staging that is not."""
        state = self._state
        if not (state.declared_uses or state.staging):
            return
        nexts = self._nexts()
        absent = self._absent(nexts)
        if self._may_load(absent):
            self._load(absent[0], nexts, now)
        # One reader at a time: a load has the disk to itself.
        if state.residents.loading or not nexts:
            self._stop_staging()
        else:
            self._stage(absent[:STAGED_AHEAD])

    def _nexts(self) -> dict[str, int]:
        state = self._state
        return state.declared_uses.next_uses(LOOKAHEAD) if state.settings.prefetch != "off" else {}

    # Which

    def _absent(self, nexts: dict[str, int]) -> list[EngineRecord]:
        """The engines that may be fetched, nearest use first; nothing past one that is leaving.

        An engine that failed before is left to a request, so that it is not tried over and over in vain.
        """
        state = self._state
        found = []
        for engine_id in nexts:
            if engine_id not in state.residents:
                continue
            engine = state.residents[engine_id]
            if engine.state is State.EVICTING:
                break
            wanted = engine.demand or engine.retired or not engine.spec.options
            if engine.state is not State.ABSENT or wanted:
                continue
            if state.fitting.feasible(engine, measured=True):
                found.append(engine)
        return found

    # Loading

    def _may_load(self, absent: list[EngineRecord]) -> bool:
        state = self._state
        wanted = bool(absent) and state.settings.prefetch in ("load", "spare")
        return wanted and not state.residents.loading and not self.cores_are_busy

    @property
    def cores_are_busy(self) -> bool:
        """Whether loads ahead wait for a core ("spare"): the engines in use compute on all of them.

        A load beside them can take more from the generation than it hides: their threads wait for
        one another at every layer, so that one that shares its core slows all of them.
        """
        cores = self._state.settings.cores
        if cores is None or self._state.settings.prefetch != "spare":
            return False
        working = {e.engine_id: e.option.threads for e in self._state.leases.values()}
        return sum(working.values()) >= cores

    def _load(self, engine: EngineRecord, nexts: dict[str, int], now: float) -> None:
        """Load an engine ahead, or let victims go for it first, where no sooner use loses by it."""
        state = self._state
        mine = nexts[engine.engine_id]
        blocked = self._wanted_devices()

        def spare(other: EngineRecord) -> bool:
            sooner = nexts.get(other.engine_id, LOOKAHEAD) <= mine
            return sooner or other.state is not State.IDLE or bool(other.demand)

        choice = state.admission.choose(engine, now, may_drain=None, measured=True, spare=spare)
        if choice is None or self._touches(engine, choice, blocked):
            return
        if choice.victims:
            requested = engine.spec.options[choice.option_index].bookings
            state.decide(engine.engine_id, requested, choice, now, PREFETCH)
        claim = Claim(engine, choice.option_index, LAST, PREFETCH, forced=False)
        if state.claims.ready(claim):
            state.load(claim, now)

    def _wanted_devices(self) -> set[str]:
        """Devices on which a request waits for bytes: nothing is taken ahead there."""
        state = self._state
        wanted: set[str] = set(state.low)
        for engine_id in state.queue.engines():
            engine = state.residents[engine_id]
            if not engine.resident and engine.state is not State.LOADING:
                wanted.update(d for option in engine.spec.options for d, _ in option.bookings)
        return wanted

    @staticmethod
    def _touches(engine: EngineRecord, choice: Choice, devices: set[str]) -> bool:
        bookings = engine.spec.options[choice.option_index].bookings
        return any(device in devices for device, _ in bookings)

    # Staging

    def _stage(self, wanted: list[EngineRecord]) -> None:
        names = [engine.engine_id for engine in wanted]
        staging = self._state.staging
        if staging is not None:
            if staging.engine_id not in names:
                self._stop_staging()
            return
        for engine in wanted:
            if engine.engine_id not in self._staged:
                self._state.staging = Staging(engine.engine_id)
                self._state.actions.append(StageFile(engine.engine_id))
                return

    def _stop_staging(self) -> None:
        staging = self._state.staging
        if staging is not None and not staging.stopped:
            staging.stopped = True
            self._state.actions.append(StopStaging(staging.engine_id))


def unused_first(state: CoreState, candidates: list[EvictionCandidate]) -> list[EvictionCandidate]:
    """The candidates with those that were prefetched and not used at no loss: they go first."""
    return [
        EvictionCandidate(c.engine_id, 0.0, c.bookings) if c.engine_id in state.prefetched else c
        for c in candidates
    ]
