"""A KV leak: a conversation that grows, with a beginning that differs in every turn.

Each prompt is evaluated anew from its first token, because what the KV cache has begins otherwise. Run
`python examples/traces/kv_leak.py`, and open the trace that it names.
"""

from showing import show

from shim import Shim
from traces import RunTrace

TURNS = 6
PASTED = "The customer writes that the delivery came late and that one box was open. " * 2


def story(shim: Shim, run: RunTrace) -> None:
    """The clock in the system message spoils the cache, and each turn adds to the prompt."""
    said: list[dict[str, str]] = []
    for turn in range(TURNS):
        said.append({"role": "user", "content": PASTED})
        system = {"role": "system", "content": f"It is {turn + 9}:00. You answer letters."}
        with run.span(f"turn {turn + 1}"):
            reply = shim.chat("writer", [system, *said], max_tokens=12)
        said.append({"role": "assistant", "content": reply.content})


if __name__ == "__main__":
    show(story, "KV leak", ["writer"])
