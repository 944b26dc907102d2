"""A convoy: one slot, a long answer first, and short questions that wait behind it.

Run `python examples/traces/convoy.py`, and open the trace that it names.
"""

from concurrent.futures import ThreadPoolExecutor

from showing import say, show

from shim import Shim
from traces import RunTrace

SHORT = 4


def story(shim: Shim, run: RunTrace) -> None:
    """The long answer has the slot when the short questions come."""
    with ThreadPoolExecutor(SHORT) as pool, run.span("a long letter and short questions"):
        with shim.stream("writer", say("Write a long letter."), max_tokens=400) as letter:
            next(letter)
            asked = [pool.submit(run.carry(ask), shim, number) for number in range(SHORT)]
            for _ in letter:
                pass
        for question in asked:
            question.result()


def ask(shim: Shim, number: int) -> None:
    """A short question."""
    shim.chat("writer", say(f"Question {number}?"), max_tokens=4)


if __name__ == "__main__":
    show(story, "convoy", ["writer"], writer={"slots": 1})
