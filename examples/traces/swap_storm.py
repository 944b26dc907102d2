"""A swap storm: two models that do not fit together, asked for in turns.

Run `python examples/traces/swap_storm.py`, and open the trace that it names.
"""

from showing import say, show

from shim import Shim
from traces import RunTrace

LETTERS = 3


def story(shim: Shim, run: RunTrace) -> None:
    """For every letter each model pushes the other one out."""
    for number in range(LETTERS):
        with run.span(f"letter {number + 1}"):
            shim.chat("router", say(f"Which letter is number {number}?"), max_tokens=8)
            shim.chat("writer", say(f"Answer letter {number}."), max_tokens=24)


if __name__ == "__main__":
    show(story, "swap storm", [])
