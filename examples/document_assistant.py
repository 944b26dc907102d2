"""Questions about keepwarm's own documentation, answered by small real models.

`make models` fetches both models. MiniLM finds passages beside BM25 in a `MemoryStore`, and SmolLM2 answers
from the best one. What a model of 135 million parameters says needs a look at the source, which is named.
Run `python examples/document_assistant.py [QUESTION ...]`.
"""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from harness import Compressor, MemoryStore, Passage
from shim import Shim

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / "models" / "real"
PAGES = ("policy.md", "traces.md")
QUESTIONS = (
    "How is the victim of an eviction chosen?",
    "How can I look at a trace?",
)
CONFIG = {
    "budget": {"device": "host", "limit": "600MB", "reserve": 0},
    "models": {
        "embedder": {
            "path": str(REAL / "MiniLM-L6-v2-F16.gguf"), "role": "embedder", "context": 512,
        },
        "answerer": {
            "path": str(REAL / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"),
            "context": 2048,
        },
    },
}  # fmt: skip
TOLD = "Answer the question in one or two sentences, from the text alone."
LONGEST = 900
"""Characters of a passage: what MiniLM reads of a text, and enough to answer from."""


def passages() -> Iterator[Passage]:
    """The sections of some pages, each with its page and heading."""
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text("utf-8")
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            for start in range(0, len(body.strip()), LONGEST):
                piece = f"{heading}\n{body.strip()[start : start + LONGEST]}"
                yield Passage(piece, {"page": page, "heading": heading})


def answer(shim: Shim, memory: MemoryStore, question: str) -> None:
    """Print the answer to a question, and where it is from."""
    start_s = time.perf_counter()
    found = memory.search(question)
    best = found.hits[0]
    text = Compressor(limit=LONGEST).compress(best.text, question).text
    asked = f"{text}\n\nQuestion: {question}"
    messages = [{"role": "system", "content": TOLD}, {"role": "user", "content": asked}]
    reply = shim.chat("answerer", messages, max_tokens=80, temperature=0.0)
    print(f"\n{question}\n  {' '.join(reply.content.split())}")
    print(f"  from {best.metadata['page']}, {best.metadata['heading']!r}", end="")
    print(f" in {time.perf_counter() - start_s:.1f} s {found.degraded}")


def main() -> None:
    """Remember the pages (once), and answer."""
    file = Path(gettempdir()) / "keepwarm-document-assistant.sqlite"
    with (
        Shim(CONFIG, inline=True, share=True) as shim,
        MemoryStore(file, "embedder", shim=shim) as memory,
    ):
        memory.add(passages())
        print(f"{len(memory)} passages of {', '.join(PAGES)}; {memory.pending} without a vector")
        for question in sys.argv[1:] or QUESTIONS:
            answer(shim, memory, question)


if __name__ == "__main__":
    main()
