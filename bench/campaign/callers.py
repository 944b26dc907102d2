"""The campaign's calling programs: started, heard, watched over, and replaced when they were killed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO, Any

from _common import say

from campaign.checks import Checks
from campaign.models import HERE
from campaign.place import BOUND_S, Place
from campaign.tally import Tally

MODES = ("threads", "tasks", "single", "single")
"""Eight callers: three threads, three tasks, two programs."""
STARTED_WITHIN_S = 10.0
PATIENCE_S = 2.5 * BOUND_S


@dataclass
class Caller:
    """One calling program.

    Attributes:
        open: its requests without an end, as told at their begin; `at` is None between two calls.
        calls: whether it has begun any.
        round: the number of the last one that it has finished.
        heard: the thread that reads what it tells.
    """

    mode: str
    process: subprocess.Popen[str]
    open: dict[int, dict[str, Any]] = field(default_factory=dict)
    calls: bool = False
    round: int = 0
    heard: threading.Thread | None = None


class Callers:
    """All of them.

    Args:
        place: where they call.
        tally: what counts what they tell.
        checks: told what they hold after a round.
        errors: their standard error.
    """

    def __init__(self, place: Place, tally: Tally, checks: Checks, errors: IO[bytes]) -> None:
        self._place, self._tally, self._checks, self._errors = place, tally, checks, errors
        self._all: list[Caller] = []
        self._lock = threading.Lock()
        for number in (signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # and so in callers, until they have handlers
        for mode in MODES:
            self._start(mode)

    def look_after(self) -> None:
        """Replace those that were killed; a call that is over its bound is hung, and its caller ends."""
        for caller in list(self._all):
            now = time.monotonic()
            with self._lock:
                late = [call for call in caller.open.values() if _is_late(call, now)]
            if late and caller.process.poll() is None:
                self._hung(caller, f"{late}", len(late))
            if caller.process.poll() is not None:
                self._gone(caller)
                self._start(caller.mode)

    def wait_for_first_calls(self) -> None:
        """Until every caller has begun a request, in a bounded time: programs take a second to start."""
        until = time.monotonic() + STARTED_WITHIN_S
        while not all(caller.calls for caller in self._all) and time.monotonic() < until:
            time.sleep(0.02)

    def wait_for_round(self, number: int) -> None:
        """Until every caller has finished a round; those that do not are hung."""
        until = time.monotonic() + PATIENCE_S
        while any(caller.round < number for caller in self._all):
            time.sleep(0.02)
            self.look_after()
            if time.monotonic() > until:
                for caller in [one for one in self._all if one.round < number]:
                    self._hung(caller, f"in mode {caller.mode}: {caller.open}", 1)
                return

    def end(self) -> None:
        """They were told to stop; wait for their ends."""
        for caller in list(self._all):
            with contextlib.suppress(subprocess.TimeoutExpired):
                caller.process.wait(PATIENCE_S)
                self._gone(caller)
                continue
            self._hung(caller, f"a caller in mode {caller.mode} does not end", 1)
            self._gone(caller)

    def _start(self, mode: str) -> None:
        seed = self._place.chance.randrange(1 << 30)
        process = subprocess.Popen(
            [sys.executable, str(HERE / "caller.py"), mode, str(seed)],
            env=self._place.env,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        caller = Caller(mode, process)
        caller.heard = threading.Thread(target=self._hear, args=(caller,), daemon=True)
        caller.heard.start()
        self._all.append(caller)
        self._place.callers.append(process)

    def _hung(self, caller: Caller, what: str, number: int) -> None:
        self._tally.hung += number
        say(f"hung: {what}")
        caller.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        caller.process.kill()
        caller.process.wait()

    def _gone(self, caller: Caller) -> None:
        """A program has ended: what it had begun ended with it if it was killed, and is lost if not."""
        code = caller.process.wait()
        if caller.heard is not None:
            caller.heard.join(5.0)
        self._all.remove(caller)
        self._place.callers.remove(caller.process)
        with self._lock:
            if code == -signal.SIGKILL:
                self._tally.with_caller += len(caller.open)
            else:
                self._tally.lost += len(caller.open)
            if code not in (0, -signal.SIGKILL):
                self._tally.lost += 1
                say(f"lost: a caller in mode {caller.mode} ended with {code}: {caller.open}")

    def _hear(self, caller: Caller) -> None:
        assert caller.process.stdout is not None
        for line in caller.process.stdout:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            with self._lock:
                self._heard(caller, told)

    def _heard(self, caller: Caller, told: dict[str, Any]) -> None:
        tally = self._tally
        if "begin" in told:
            tally.requests += 1
            tally.calls += 1
            caller.open[told["begin"]] = told
            caller.calls = True
        elif "pause" in told:
            begun = caller.open[told["pause"]]
            self._timed(begun, told)
            begun["at"], begun["first"] = None, told["outcome"]
        elif "again" in told:
            tally.calls += 1
            caller.open[told["again"]]["at"] = told["at"]
        elif "end" in told:
            self._ended(caller.open.pop(told["end"]), told)
        elif "round" in told:
            caller.round = told["round"]
            if "descriptors" in told:
                self._checks.caller_told(caller.process.pid, told["descriptors"])
        elif "stuck" in told:
            tally.hung += 1
            say(f"hung: {told['stuck']}")

    def _timed(self, begun: dict[str, Any], told: dict[str, Any]) -> None:
        if begun["at"] is not None and begun["kind"] != "plan":
            seconds = told["at"] - begun["at"]
            self._tally.longest_call_s = max(self._tally.longest_call_s, seconds)

    def _ended(self, begun: dict[str, Any], told: dict[str, Any]) -> None:
        tally, first = self._tally, begun.get("first")
        self._timed(begun, told)
        answered = told["outcome"] == "answered"
        if first and told["outcome"] != "given up":
            tally.retried[first] += 1
            tally.retried_ok += answered
            if not answered:
                say(f"not answered at the retry: {begun} {told}")
        if answered:
            tally.answered += 1
        elif told["outcome"] == "given up":
            tally.given_up += 1
        else:
            tally.failed[told["outcome"]] += 1
            if not told["typed"]:
                tally.untyped += 1
                say(f"untyped: {begun['kind']} of {begun['model']}: {told}")


def _is_late(call: dict[str, Any], now: float) -> bool:
    bound_s = BOUND_S * (3 if call["kind"] == "plan" else 1)
    return call["at"] is not None and now - call["at"] > bound_s
