"""The voice agent's seconds from question to spoken answer, three ways: `python bench/voice.py`.

The agent is `examples/voice_agent.py` with its budget for three fifths of the bytes. The ways take turns:
the next stage's model loads meanwhile; every model loads on demand; and what people start from, a process
for each model and request. Then the agent's judge: how well each of three possible judges tells right
answers from wrong ones (the area under the ROC curve, on answers whose truth is known), and how often
speech is right. The last line of the output is one JSON object. `make models voice` installs what it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from _common import REPOSITORY, end_on_signals, last_line, say

sys.path.insert(0, str(REPOSITORY / "examples"))

import voice_agent as example

from backends.base import Capabilities, Endpoint
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.machine.unix_http import is_healthy
from backends.openai import ChatRequest
from backends.openai.sync_client import SyncTransport
from harness import Judge, Pipeline
from harness.demo.reports import RUBRIC, FactSheet, Statement, judge_prompt, sheets
from harness.demo.reports.facts import VALUES
from harness.demo.reports.trained import trained_model
from shim import Shim

QUESTIONS = {
    "city": "Which city does {} live in?",
    "job": "What does {} do for a living?",
    "born": "When was {} born?",
    "pet": "What pet does {} keep?",
    "sport": "Which sport does {} play?",
    "dish": "Which dish does {} cook?",
    "language": "Which language does {} speak?",
}
HEAR = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=1)
found, _ = model.transcribe(sys.argv[2], language="en")
print(" ".join(one.text.strip() for one in found))
"""
SPEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from voices import Piper
samples = Piper(model=sys.argv[2], threads=1)(text=sys.argv[3])["samples"]
print(len(samples))
"""
KINDS = ("_s", "_cpu_s")
IDLE_S = 3.0
OTHERS = 0.15
"""Cores that other programs may use of a machine that counts as quiet."""
FACTORIES = REPOSITORY / "backends" / "python" / "factories"


# One process for each model and request


def program(code: str, *arguments: str) -> str:
    """What a Python program of the voice environment prints."""
    command = [str(example.PYTHON), "-c", code, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout


@contextlib.contextmanager
def server(model: str) -> Iterator[Endpoint]:
    """A llama-server of the agent's model with the agent's arguments, started and ended here."""
    entry = example.configured("100%", ahead=False)["models"][model]
    binary = find_binary("llama-server")
    with tempfile.TemporaryDirectory(prefix="kw-voice-") as folder:
        socket = Path(folder) / "s.sock"
        command = [str(binary), "--host", str(socket), "-m", entry["path"], "-t", "1", "-np", "1"]
        command += ["-c", str(entry["context"]), "--fit", "off", "--no-warmup", "--no-ui"]
        command += ["-ub", str(entry["n_ubatch"])]
        command += ["--embeddings", "--pooling", "mean"] if entry.get("role") else []
        env = {**os.environ, **library_env(binary)}
        with serving(command, env, Path(folder) / "log", lambda: is_healthy(socket)):
            yield Endpoint.of_engine(model, socket, Capabilities(embeddings="role" in entry))


def embedded(model: str, texts: Sequence[str]) -> Sequence[Sequence[float]]:
    """Vectors of texts, from a server that is started for them."""
    transport = SyncTransport()
    with server(model) as endpoint:
        vectors: Sequence[Sequence[float]] = transport.embed(endpoint, list(texts)).vectors
        transport.close()
    return vectors


def answered(question: str, passage: str) -> str:
    """SmolLM2's answer, from a server that is started for it."""
    asked = f"{passage}\n\nQuestion: {question}"
    messages = [{"role": "system", "content": example.TOLD}, {"role": "user", "content": asked}]
    transport = SyncTransport()
    with server("writer") as endpoint:
        request = ChatRequest(messages, {"max_tokens": 32, "temperature": 0.0})
        said = transport.chat(endpoint, request).content
        transport.close()
    return str(example.sentences_of(said)[0])


def nearest(vector: Sequence[float], others: Sequence[Sequence[float]]) -> int:
    """The place of the most similar of some vectors."""
    likely = [example.likeness(vector, other) for other in others]
    return likely.index(max(likely))


def one_by_one(wav: Path, known: Mapping[str, Sequence[float]]) -> str:
    """The spoken text for a question; `known` has the passages' vectors, as the agent's memory does."""
    question = program(HEAR, str(example.WHISPER), str(wav)).strip()
    asked, *kinds = embedded("embedder", [question, *example.INTENTS.values()])
    intent = list(example.INTENTS)[nearest(asked, kinds)]
    texts = [one.text for one in example.known() if one.metadata["about"] == intent]
    passage = texts[nearest(asked, [known[text] for text in texts])]
    answer = answered(question, passage)
    told = example.sentences_of(passage)
    spoken: str = example.verdict(embedded("judge", [question, answer, *told]), answer, told).spoken
    program(SPEAK, str(FACTORIES), str(example.VOICE), spoken)
    return spoken


# Three ways, in turns


def by_keepwarm(limit: int, *, ahead: bool) -> Callable[[], float]:
    """The agent; what is timed begins when it knows its passages."""

    def run() -> float:
        with contextlib.redirect_stdout(io.StringIO()), example.agent(limit, ahead=ahead) as one:
            start_s = time.perf_counter()
            Pipeline(one.stages, one.shim).run([wav.read_bytes() for wav in example.QUESTIONS])
            return time.perf_counter() - start_s

    return run


def by_processes() -> Callable[[], float]:
    """A process for each model and request; the passages' vectors are made before."""
    passages = [one.text for one in example.known()]
    known = dict(zip(passages, embedded("embedder", passages), strict=True))

    def run() -> float:
        start_s = time.perf_counter()
        for wav in example.QUESTIONS:
            one_by_one(wav, known)
        return time.perf_counter() - start_s

    return run


def busy_s() -> float:
    """Processor seconds of all programs of this machine, since it started."""
    fields = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, fields)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def wait_until_idle() -> None:
    """Return when other programs have left the machine alone for three seconds."""
    while True:
        before_s = busy_s()
        time.sleep(IDLE_S)
        if busy_s() - before_s < OTHERS * IDLE_S:
            return


def cpu_s() -> float:
    """Processor seconds of this process and of all that it has started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def times(limit: int, rounds: int, *, quiet: bool) -> dict[str, float]:
    """Seconds and processor seconds a question of each way: medians, after a round that does not count.

    Processor seconds have the agent's start and its passages in them, in the ways of keepwarm. `quiet`: a
    run begins when the machine is idle, and is done again where other programs worked beside it.
    """
    ways = {
        "ahead": by_keepwarm(limit, ahead=True),
        "on_demand": by_keepwarm(limit, ahead=False),
        "process_each": by_processes(),
    }
    found: dict[str, list[float]] = {f"{name}{kind}": [] for name in ways for kind in KINDS}
    for number in range(rounds + 1):
        for name, run in ways.items():
            each, others = measured(run, quiet=quiet)
            while quiet and others > OTHERS:
                say(f"others used {others:.2f} cores beside {name}: once more")
                each, others = measured(run, quiet=quiet)
            say(
                f"round {number} of {rounds}, {name}: {each[0]:.2f} s a question, CPU {each[1]:.2f}, "
                f"others {others:.2f} cores"
            )
            for kind, one in zip(KINDS, each, strict=True):
                if number:
                    found[f"{name}{kind}"].append(one)
    return {name: statistics.median(each) for name, each in found.items()}


def measured(run: Callable[[], float], *, quiet: bool) -> tuple[list[float], float]:
    """Seconds and processor seconds a question, and the cores that other programs used meanwhile."""
    if quiet:
        wait_until_idle()
    before_s, busy_before_s, start_s = cpu_s(), busy_s(), time.perf_counter()
    took, used = run(), cpu_s() - before_s
    others = (busy_s() - busy_before_s - used) / (time.perf_counter() - start_s)
    return [one / len(example.QUESTIONS) for one in (took, used)], others


# The judge


def auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """How often a right answer has the higher score; 0.5 is chance."""
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


@dataclass(frozen=True)
class Case:
    """A fact sheet, a question on one of its facts, and answers whose truth is known."""

    sheet: FactSheet
    fact: Statement
    question: str
    right: str
    wrong: tuple[str, str]

    @property
    def sentences(self) -> list[str]:
        """Those of the sheet's report."""
        found: list[str] = example.sentences_of(self.sheet.report())
        return found


def cases(count: int) -> list[Case]:
    """Questions; the wrong answers have another value, and another fact of the same person."""
    draw, found = random.Random(2), list[Case]()  # nothing secret
    for sheet in islice(sheets(seed=12), count):
        fact = draw.choice(sheet.facts)
        value = draw.choice([one for one in VALUES[fact.key] if one != fact.value])
        other = draw.choice([one for one in sheet.facts if one != fact])
        wrong = (sheet.report([Statement(fact.key, value)]), sheet.report([other]))
        question = QUESTIONS[fact.key].format(sheet.name)
        found.append(Case(sheet, fact, question, sheet.report([fact]), wrong))
    return found


def yes_less_no(shim: Shim, case: Case, answer: str) -> float:
    """SmolLM2 as a judge: how much likelier a yes is than a no."""
    asked = (
        f"Text: {case.sheet.report()}\nQuestion: {case.question}\nAnswer: {answer}\n"
        "Is the answer to the question right according to the text? Say yes or no."
    )
    options: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    reply = shim.chat("writer", asked, temperature=0.0, **options)
    found = {
        one["token"].strip().lower(): float(one["logprob"])
        for one in reversed(reply.logprobs[0]["top_logprobs"])
    }
    return found.get("yes", -math.inf) - found.get("no", -math.inf) if found else 0.0


def judges(shim: Shim, some: Sequence[Case]) -> dict[str, float]:
    """The area under the curve of each judge: the agent's, the trained evaluator, SmolLM2."""
    trained = Judge(shim, RUBRIC, "evaluator", prompt=judge_prompt)

    def by_vectors(case: Case, answer: str) -> float:
        vectors = shim.embed("judge", [case.question, answer, *case.sentences]).vectors
        return float(example.verdict(vectors, answer, case.sentences).score)

    def by_evaluator(case: Case, answer: str) -> float:
        task = FactSheet(case.sheet.name, (case.fact,)).task
        return trained.evaluate(task, answer).composite

    ways: dict[str, Callable[[Case, str], float]] = {
        "judge": by_vectors,
        "evaluator": by_evaluator,
        "smollm2": lambda case, answer: yes_less_no(shim, case, answer),
    }
    figures = dict[str, float]()
    for name, score in ways.items():
        right = [score(case, case.right) for case in some]
        wrong = [score(case, answer) for case in some for answer in case.wrong]
        figures[f"{name}_auc"] = auc(right, wrong)
        say(f"{name}: area under the curve {figures[f'{name}_auc']:.3f}")
    return figures


def spoken_right(shim: Shim, some: Sequence[Case]) -> dict[str, float]:
    """How often SmolLM2's own answer has the fact, and how often what is spoken has it."""
    own, spoken = 0, 0
    for case in some:
        asked = f"{case.sheet.report()}\n\nQuestion: {case.question}"
        messages = [{"role": "system", "content": example.TOLD}, {"role": "user", "content": asked}]
        said = shim.chat("writer", messages, max_tokens=32, temperature=0.0).content
        answer = example.sentences_of(said)[0]
        vectors = shim.embed("judge", [case.question, answer, *case.sentences]).vectors
        own += case.fact.value in answer
        spoken += case.fact.value in example.verdict(vectors, answer, case.sentences).spoken
    return {"own_right": own / len(some), "spoken_right": spoken / len(some)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each way, after one to warm up; 0 for none"
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="Wait for a quiet machine, and repeat disturbed rounds.",
    )
    parser.add_argument("--cases", type=int, default=40, help="for the judges")
    given = parser.parse_args()
    end_on_signals()
    limit, whole = example.half()
    figures = {"budget_share": limit / whole}
    if given.rounds:
        figures |= times(limit, given.rounds, quiet=given.quiet)
    config = example.configured("100%", ahead=True)
    with tempfile.TemporaryDirectory(prefix="kw-voice-") as folder:
        file = trained_model("evaluator", "Q8_0", Path(folder))
        config["models"]["evaluator"] = {"path": str(file), "context": 1024, "threads": 1}
        with Shim(config, inline=True, share=True) as shim:
            some = cases(given.cases)
            figures |= judges(shim, some) | spoken_right(shim, some)
    say(json.dumps(figures, indent=1))
    last_line(figures)


if __name__ == "__main__":
    main()
