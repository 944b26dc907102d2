"""A good pipeline: both models stay, the order is declared, and slots are enough.

Run `python examples/traces/good_pipeline.py`, and open the trace that it names.
"""

from concurrent.futures import ThreadPoolExecutor

from showing import say, show

from shim import Shim
from traces import RunTrace

LETTERS = 4


def story(shim: Shim, run: RunTrace) -> None:
    """One letter is routed while others are written."""
    with shim.plan(["router", "writer"] * LETTERS), ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run.carry(letter), shim, run, n) for n in range(LETTERS)]:
            done.result()


def letter(shim: Shim, run: RunTrace, number: int) -> None:
    """Both steps of one letter."""
    with run.span(f"letter {number + 1}"):
        shim.chat("router", say(f"Which letter is number {number}?"), max_tokens=8)
        shim.chat("writer", say(f"Answer letter {number}."), max_tokens=48)


if __name__ == "__main__":
    show(story, "good pipeline", ["router", "writer"], router={"slots": 2}, writer={"slots": 2})
