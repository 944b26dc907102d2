"""A campaign of faults against real engines: `python bench/faults.py --faults 500 --seed 1 --seed 2`.

Eight callers (three threads, three tasks, two programs) use five models of four kinds (llama.cpp,
llama-cpp-python, a Python model, a program that serves) under a budget for half of their bytes, while
engines, keeper, callers, files, disks and clocks fail at random moments (bench/campaign/kinds.py). It goes
in rounds: faults, a calm, and checks while no caller holds anything. A request of which nothing was
delivered is sent once more when the faults of its round are over (`retried_ok_share`).

The last line of the output is one JSON object over all seeds: `{"faults": {KIND: n}, "requests", "calls",
"answered", "failed": {TYPE: n}, "retried": {TYPE: n}, "retried_ok", "retried_ok_share", "given_up",
"with_caller", "untyped", "hung", "lost", "ghost_leases", "orphans", "leaks", "longest_call_s", "rounds",
"seconds"}` (bench/campaign/tally.py says what each is).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _common import end_on_signals, say
from campaign.callers import Callers
from campaign.checks import Checks
from campaign.kinds import KINDS, LONG, RARE, Kind
from campaign.place import Place, enter_namespace
from campaign.tally import Tally

FAULTS_A_ROUND = 20
PAUSE_S = 0.3
CALM_S = 0.5


class Campaign:
    """One seed's campaign.

    Args:
        place: where it happens.
        tally: what is counted.
        kinds: the kinds of faults that are drawn from.
        pause_s: the mean time between two faults.
    """

    def __init__(
        self, place: Place, tally: Tally, kinds: Sequence[Kind], pause_s: float = PAUSE_S
    ) -> None:
        self._place, self._tally, self._kinds, self._pause_s = place, tally, kinds, pause_s
        self._checks = Checks(place, tally)

    def run(self, faults: int) -> None:
        """Rounds until so many faults were done."""
        self._place.prepare()
        if faults > FAULTS_A_ROUND:
            self._checks.after_round()
        with (self._place.root / "callers.err").open("ab") as errors:
            callers = Callers(self._place, self._tally, self._checks, errors)
            while sum(self._tally.faults.values()) < faults:
                self._round(callers, faults)
            self._place.say_phase("0 stop")
            callers.end()
        self._place.end_keeper()
        self._checks.at_end()

    def _round(self, callers: Callers, faults: int) -> None:
        tally, place = self._tally, self._place
        tally.rounds += 1
        done, until = sum(tally.faults.values()), faults
        until = min(until, done + FAULTS_A_ROUND)
        place.say_phase(f"{tally.rounds} faults")
        callers.wait_for_first_calls()
        while done < until:
            time.sleep(place.chance.expovariate(1 / self._pause_s))
            kind = place.chance.choice(self._kinds)
            if place.chance.random() < RARE.get(kind, 1.0) and kind(place):
                tally.faults[kind.__name__] += 1
                done += 1
            callers.look_after()
        place.let_faults_end()
        place.say_phase(f"{tally.rounds} calm")
        time.sleep(CALM_S)
        place.say_phase(f"{tally.rounds} check")
        callers.wait_for_round(tally.rounds)
        self._checks.after_round()
        say(f"round {tally.rounds}: {tally.as_json()}")


def campaign(
    seed: int,
    faults: int,
    tally: Tally,
    kinds: Sequence[Kind],
    *,
    keep: bool = False,
    quick: bool = False,
) -> None:
    """One seed's faults, added to a tally.

    Args:
        seed: of every random choice.
        faults: how many.
        tally: what is added to.
        kinds: what is drawn from.
        keep: leave the folder, with all logs, where it is.
        quick: with shorter pauses.
    """
    root = Path(tempfile.mkdtemp(prefix="kw-f", dir="/tmp"))
    one = Tally()

    def hung(what: str) -> None:
        one.hung += 1
        say(f"hung: {what}")

    place = Place(root, seed, hung)
    began = time.monotonic()
    try:
        Campaign(place, one, kinds, PAUSE_S / 3 if quick else PAUSE_S).run(faults)
    finally:
        if keep or not one.is_clean:
            _keep_logs(root)
        place.close()
        if keep or not one.is_clean:
            say(f"the logs of seed {seed} are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    one.seconds = time.monotonic() - began
    say(f"seed {seed}: {one.as_json()}")
    tally.add(one)


def _keep_logs(root: Path) -> None:
    """Copies of what lies on disks that end with this program."""
    for name in ("state", "runs"):
        with contextlib.suppress(OSError):
            shutil.copytree(root / name, root / f"kept-{name}", dirs_exist_ok=True)


def main(arguments: Sequence[str]) -> int:
    """Run the campaigns of all seeds; the exit code says whether they were clean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=500, help="faults of each seed")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="leave out the kinds that take long")
    parser.add_argument("--kind", action="append", help="only these kinds of faults")
    parser.add_argument("--keep", action="store_true", help="keep the folders with all logs")
    given = parser.parse_args(arguments)
    enter_namespace()
    end_on_signals()
    tally = Tally()
    kinds = [kind for kind in KINDS if not given.kind or kind.__name__ in given.kind]
    kinds = [kind for kind in kinds if not given.quick or kind not in LONG]
    for seed in given.seed or [1]:
        campaign(seed, given.faults, tally, kinds, keep=given.keep, quick=given.quick)
    print(tally.as_json(), flush=True)
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
