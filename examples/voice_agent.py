"""A voice agent whose every stage is a real model, in a budget for three fifths of their bytes.

A spoken question is heard (Whisper), its intent is found (MiniLM), a passage is looked up (`MemoryStore`),
an answer is written (SmolLM2), scored (a pinned judge) and spoken (Piper). Where an answer does not pass,
the passage's own sentence is spoken. While one stage works, the model of the next one is loaded. Then the
same questions are asked with every model loaded on demand.
`make models voice` installs what it needs. Run `python examples/voice_agent.py [WAV ...]`.
"""

import math
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from harness import ItemResult, MemoryStore, Passage, Pipeline, Stage, StageContext
from harness.demo.reports import FactSheet, Statement
from harness.demo.reports.facts import NAMES, VALUES
from shim import Shim
from shim.paths import cache_dir
from traces import RunTrace
from traces.reading.spans_of import spans_of
from traces.reading.stored_events import TraceFile
from traces.reading.summary import summarise

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / "models" / "real"
PYTHON = ROOT / ".venv-voice" / "bin" / "python"
QUESTIONS = [
    ROOT / "examples" / "spoken" / "canteen.wav",
    ROOT / "harness" / "demo" / "spoken" / "job.wav",
]
FOLDER = cache_dir() / "voice-agent"
"""Where the spoken answers and the traces go."""

WHISPER = REAL / "whisper-tiny.en"
SMOLLM = REAL / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = REAL / "MiniLM-L6-v2-F16.gguf"
MINILM_Q8 = REAL / "MiniLM-L6-v2-Q8_0.gguf"
VOICE = REAL / "piper-joe" / "en_US-joe-medium.onnx"
CHAIN = ("ear", "embedder", "writer", "voice")
"""The models in the order in which a question needs them; the judge stays."""
SLACK = 1.03
"""The limit over what two neighbours and the judge take: what is learned later may be more."""

INTENTS = {
    "people": "a question about a person: job, home, pet, sport, language, cooking, year of birth",
    "house": "a question about the building: opening hours, rooms, canteen, parking, badges, heating",
}
HOUSE = (
    "The canteen opens at eleven and closes at two. It is on the second floor.",
    "A new badge is made at the reception. Bring a photograph.",
    "Bicycles stand in the yard. Cars are parked behind the building.",
    "The heating is turned off at seven in the evening.",
    "The library is on the fourth floor. It is open day and night.",
    "Meeting rooms are booked at the reception.",
)
TOLD = "Answer the question from the text in one short sentence."
PASSES = 6.0
"""The score of an answer that is spoken."""


def configured(limit: int | str, *, ahead: bool) -> dict[str, Any]:
    """Five models. `ahead` says whether models are loaded before they are asked for."""
    small = {"role": "embedder", "context": 256, "n_batch": 256, "n_ubatch": 256, "threads": 1}
    worker = {"python": str(PYTHON), "threads": 1}
    hears = {"model": str(WHISPER), "device": "cpu", "compute_type": "int8", "cpu_threads": 1}
    speaks = {"model": str(VOICE), "threads": 1}
    models: dict[str, dict[str, Any]] = {
        "ear": {"factory": "faster-whisper", "options": hears, "bytes": "150MB", **worker},
        "embedder": {"path": str(MINILM), **small},
        "writer": {"path": str(SMOLLM), "context": 1024, "n_ubatch": 128, "threads": 1},
        "judge": {"path": str(MINILM_Q8), "pin": True, **small},
        "voice": {"factory": "piper", "options": speaks, "bytes": "140MB", **worker},
    }
    models["ear"]["files"], models["voice"]["files"] = [str(WHISPER)], [str(VOICE)]
    budget = {"device": "host", "limit": limit, "reserve": 0, "prefetch": ahead}
    return {"budget": budget, "models": models}


def half() -> tuple[int, int]:
    """The limit, which holds the judge and any two stages that follow one another, and the bytes of all."""
    with Shim(configured("100%", ahead=True), inline=True, share=True) as shim:
        found: Mapping[str, Mapping[str, int]] = shim.what_if(list(shim.config.models))["bytes"]
    needed = {name: sum(devices.values()) for name, devices in found.items()}
    most = max(needed[one] + needed[next_one] for one, next_one in pairwise(CHAIN))
    return int((needed["judge"] + most) * SLACK), sum(needed.values())


def known() -> list[Passage]:
    """What can be asked about: 24 people and the house."""
    draw = random.Random(1)  # noqa: S311 - nothing secret
    people = [
        FactSheet(name, tuple(Statement(key, draw.choice(VALUES[key])) for key in VALUES))
        for name in NAMES
    ]
    passages = [Passage(one.report(), {"about": "people"}) for one in people]
    return passages + [Passage(text, {"about": "house"}) for text in HOUSE]


def likeness(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


class Verdict(NamedTuple):
    """An answer's score, 0 to 10, and what is spoken: the answer, or a sentence of the passage instead."""

    score: float
    spoken: str


def verdict(vectors: Sequence[Sequence[float]], answer: str, sentences: Sequence[str]) -> Verdict:
    """The judge's, by the vectors of the question, the answer and the passage's sentences.

    A good answer says what one of these sentences says, and is about what was asked.
    """
    question, said, *told = vectors
    grounded = max(likeness(said, one) for one in told)
    score = 10 * max(0.0, grounded) * max(0.0, likeness(question, said))
    relevant = [likeness(question, one) for one in told]
    return Verdict(score, answer if score >= PASSES else sentences[relevant.index(max(relevant))])


def sentences_of(text: str) -> list[str]:
    """The sentences of a text."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


@dataclass
class Agent:
    """The stages, over one shim and one memory."""

    shim: Shim
    memory: MemoryStore

    def __post_init__(self) -> None:
        self.hear = Stage("hear", "ear", self._hear)
        self.intent = Stage("intent", "embedder", self._intent)
        self.recall = Stage("recall", "embedder", self._recall)
        self.answer = Stage("answer", "writer", self._answer)
        self.score = Stage("score", "judge", self._score)
        self.speak = Stage("speak", "voice", self._speak)
        self.stages = (self.hear, self.intent, self.recall, self.answer, self.score, self.speak)

    def _hear(self, c: StageContext) -> str:
        return c.keep(c.shim.transcribe(c.model, c.input, language="en")).text

    def _intent(self, c: StageContext) -> str:
        asked, *kinds = c.embed([c.result(self.hear), *INTENTS.values()]).vectors
        likely = [likeness(asked, kind) for kind in kinds]
        return list(INTENTS)[likely.index(max(likely))]

    def _recall(self, c: StageContext) -> str:
        about = {"about": c.result(self.intent)}
        return self.memory.search(c.result(self.hear), where=about).hits[0].text

    def _answer(self, c: StageContext) -> str:
        asked = f"{c.result(self.recall)}\n\nQuestion: {c.result(self.hear)}"
        messages = [{"role": "system", "content": TOLD}, {"role": "user", "content": asked}]
        said = c.chat(messages, max_tokens=32, temperature=0.0).content
        return sentences_of(said)[0] or "I have no answer."

    def _score(self, c: StageContext) -> Verdict:
        told = sentences_of(c.result(self.recall))
        vectors = c.embed([c.result(self.hear), c.result(self.answer), *told]).vectors
        return verdict(vectors, c.result(self.answer), told)

    def _speak(self, c: StageContext) -> bytes:
        return c.keep(c.shim.speak(c.model, c.result(self.score).spoken)).audio


@contextmanager
def agent(limit: int, *, ahead: bool) -> Iterator[Agent]:
    """An agent that knows its passages, with nothing resident but the judge and the embedder."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        Shim(configured(limit, ahead=ahead), inline=True, share=True) as shim,
        MemoryStore(FOLDER / "memory.sqlite", "embedder", shim=shim) as memory,
    ):
        shim.load("judge")
        memory.add(known())
        shim.unload("embedder")
        yield Agent(shim, memory)


def asked(one: Agent, wavs: Sequence[Path]) -> list[ItemResult]:
    """Each question's outcome, printed as it comes, with the spoken answer in a file."""
    found = []
    for item in Pipeline(one.stages, one.shim).iterate([wav.read_bytes() for wav in wavs]):
        spoken = FOLDER / f"{wavs[item.index].stem}-answer.wav"
        spoken.write_bytes(item.result(one.speak))
        print(f"  {item.result(one.hear)}  ({item.result(one.intent)})", flush=True)
        print(f"    {item.result(one.answer)}  ({item.result(one.score).score:.1f} of 10)")
        print(f"    spoken: {item.result(one.score).spoken}  ({spoken})")
        found.append(item)
    return found


def table(one: Agent, items: Sequence[ItemResult], trace: Path) -> str:
    """Each model's work, and its load seconds: those that were waited for, and those that were hidden."""
    loads = summarise(spans_of(TraceFile(trace).events())).models
    heads = ("work s", "loads", "load s", "visible s", "hidden s")
    lines = [f"  {'stages':<15}{'model':<10}" + "".join(f"{head:>10}" for head in heads)]
    for model in (*CHAIN, "judge"):
        replies = [
            kept.reply for item in items for kept in item.replies if kept.reply.model == model
        ]
        visible = sum(reply.residency.waited_s for reply in replies)
        works = sum(reply.total_s for reply in replies) - visible
        seconds = loads[model].load_s if model in loads else 0.0
        visible = min(visible, seconds)
        stages = ", ".join(stage.name for stage in one.stages if stage.model == model)
        lines.append(
            f"  {stages:<15}{model:<10}{works:10.2f}{loads[model].loads if model in loads else 0:10}"
            f"{seconds:10.2f}{visible:10.2f}{seconds - visible:10.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """The questions of the command line, or those that are shipped, in both ways."""
    for needed in (WHISPER, SMOLLM, MINILM, VOICE, PYTHON):
        if not needed.exists():
            sys.exit(f"{needed} is not there; `make models voice` installs it")
    wavs = [Path(name) for name in sys.argv[1:]] or QUESTIONS
    limit, whole = half()
    print(f"limit {limit / 1e6:.0f} MB, {limit / whole:.0%} of what all five models take")
    took = dict[str, float]()
    for way, ahead in (("the next model loads meanwhile", True), ("loaded on demand", False)):
        print(f"\n{way}:")
        with agent(limit, ahead=ahead) as one, RunTrace(directory=FOLDER, service="voice") as run:
            start_s = time.perf_counter()
            items = asked(one, wavs)
            took[way] = time.perf_counter() - start_s
        assert run.trace_path is not None
        print(table(one, items, run.trace_path))
        print(
            f"  {took[way]:.1f} s for {len(items)} questions; keepwarm trace open {run.trace_path}"
        )
    print("\n" + ", ".join(f"{way}: {seconds:.1f} s" for way, seconds in took.items()))


if __name__ == "__main__":
    main()
