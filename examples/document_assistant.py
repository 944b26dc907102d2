"""Questions about Python's standard library, answered from its documentation by small real models.

`make models` fetches both models. MiniLM finds passages beside BM25 in a `MemoryStore`, and says which of
them is nearest to the question: its first paragraph is the answer, with where it is from. SmolLM2 says it
in a sentence of its own, which is shown where it names what it is about. A model of 135 million parameters
can do that much, and no more. Run `python examples/document_assistant.py [QUESTION ...]`.
"""

import heapq
import inspect
import random
import re
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from harness import MemoryStore, Passage
from shim import Shim
from shim.paths import cache_dir

REAL = Path(__file__).resolve().parents[1] / "models" / "real"
FOLDER = cache_dir() / "document-assistant"
PAGES = (heapq, random, shutil, statistics, textwrap)
QUESTIONS = (
    "How can I copy a folder with everything in it?",
    "How do I find the largest items of a list?",
    "Which function gives the middle value of some numbers?",
    "How can I wrap a long text into lines?",
)
CONFIG = {
    "budget": {"device": "host", "limit": "400MB", "reserve": 0},
    "models": {
        "embedder": {
            "path": str(REAL / "MiniLM-L6-v2-F16.gguf"), "role": "embedder", "context": 512, "threads": 1,
        },
        "answerer": {
            "path": str(REAL / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"),
            "context": 1024, "threads": 1,
        },
    },
}  # fmt: skip
TOLD = "Answer the question from the text in one short sentence."
LONGEST = 900
"""Characters of a passage: what MiniLM reads of a text."""


def passages() -> Iterator[Passage]:
    """The documentation of each public function and class."""
    for page in PAGES:
        for name, thing in inspect.getmembers(page, callable):
            text = inspect.getdoc(thing) or ""
            if not name.startswith("_") and len(text) >= 40:
                where = f"{page.__name__}.{name}"
                yield Passage(f"{where}: {text[:LONGEST]}", {"where": where})


def answer(shim: Shim, memory: MemoryStore, question: str) -> None:
    """Print the answer to a question, and where it is from."""
    start_s = time.perf_counter()
    found = memory.search(question)
    said = {str(hit.metadata["where"]): first_paragraph(hit.text) for hit in found.hits}
    asked, *known = shim.embed("embedder", [question, *said.values()]).vectors
    # MiniLM's vectors have length 1, so that this is the cosine.
    likeness = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in known]
    where, text = list(said.items())[likeness.index(max(likeness))]
    print(f"\n{question}\n  {where}: {text}")
    messages = [
        {"role": "system", "content": TOLD},
        {"role": "user", "content": f"{where}: {text}\n\nQuestion: {question}"},
    ]
    reply = shim.chat("answerer", messages, max_tokens=40, temperature=0.0).content
    own = re.split(r"(?<=[.!?])\s+", " ".join(reply.split()))[0]
    if where in own:
        print(f"  SmolLM2: {own}")
    print(f"  ({time.perf_counter() - start_s:.1f} s{found.degraded and f'; {found.degraded}'})")


def first_paragraph(passage: str) -> str:
    """What a passage says first, without its name."""
    return " ".join(passage.partition(": ")[2].partition("\n\n")[0].split())


def main() -> None:
    """Remember the pages (once), and answer."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        Shim(CONFIG, inline=True, share=True) as shim,
        MemoryStore(FOLDER / "documents.sqlite", "embedder", shim=shim) as memory,
    ):
        memory.add(passages())
        pages = ", ".join(page.__name__ for page in PAGES)
        print(f"{len(memory)} passages of {pages}; the nearest one answers, with where it is from")
        for question in sys.argv[1:] or QUESTIONS:
            answer(shim, memory, question)


if __name__ == "__main__":
    main()
