"""A hidden load: the next model is loaded while the program works on something else.

Run `python examples/traces/hidden_load.py`, and open the trace that it names.
"""

import time

from showing import say, show

from shim import Shim
from traces import RunTrace


def story(shim: Shim, run: RunTrace) -> None:
    """The order is declared, so that the writer is there when it is asked for."""
    with shim.plan(["router", "writer"]):
        with run.span("route"):
            shim.chat("router", say("Which letter is this?"), max_tokens=8)
        with run.span("read the customer's file"):
            loaded(shim, "writer")
        with run.span("write"):
            shim.chat("writer", say("Write the answer."), max_tokens=48)


def loaded(shim: Shim, model: str) -> None:
    """Stands for work of the program: it takes a little longer than the load."""
    while not any(model in row["models"] and row["loaded_s"] for row in shim.status()["engines"]):
        time.sleep(0.05)
    time.sleep(0.1)


if __name__ == "__main__":
    show(story, "hidden load", ["router", "writer"])
