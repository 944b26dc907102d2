"""find -> write -> judge -> answer with four models that do the work, in a budget for about half of them.

`make models` fetches two of them. The other two come with keepwarm and were trained on this task: from a
list of facts write a report, and judge it. `python examples/pipeline.py` prints what every stage waited
for, and where the trace is.
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from harness import Pipeline, Roles, Stage, StageContext
from harness.demo.reports import RUBRIC, FactSheet, judge_prompt, sheets
from harness.demo.reports.trained import trained_model
from shim import Shim
from shim.paths import cache_dir
from traces import RunTrace

REAL = Path(__file__).resolve().parents[1] / "models" / "real"
FOLDER = cache_dir() / "examples"
SMOLLM = REAL / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PEOPLE = list(islice(sheets(seed=11), 8))
TOLD = "Answer the question from the text in one short sentence."
REQUESTS = ["Which sport does Vera play?", "Where does Mara live?"]


def model(path: Path, **options: Any) -> dict[str, Any]:
    """An entry of the configuration; `keepwarm.toml` has the same keys."""
    return {
        "path": str(path),
        "context": 512,
        "n_batch": 256,
        "n_ubatch": 256,
        "threads": 1,
    } | options


CONFIG = {
    "budget": {"device": "host", "limit": "170MB", "reserve": 0},
    "models": {
        "finder": model(REAL / "MiniLM-L6-v2-F16.gguf", role="embedder"),
        "writer": model(trained_model("producer", "Q4_K_M", FOLDER), role="producer"),
        "judge": model(
            trained_model("evaluator", "Q8_0", FOLDER), role="evaluator"
        ),  # pinned by its role
        "answerer": model(SMOLLM),
    },
}


def find(context: StageContext) -> FactSheet:
    """The fact sheet whose vector points most nearly where the request's does."""
    asked, *known = context.embed([context.input, *(one.task for one in PEOPLE)]).vectors
    likeness = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in known]
    return PEOPLE[likeness.index(max(likeness))]


def write(context: StageContext) -> str:
    """A report from the facts."""
    return context.chat(context.results["find"].task, max_tokens=96, temperature=0.0).content


def judge(context: StageContext) -> float:
    """The composite of the judge's scores, 0 to 10."""
    messages = judge_prompt(RUBRIC, context.results["find"].task, context.results["write"])
    reply = context.chat(messages, max_tokens=200, temperature=0.0, json_schema=RUBRIC.schema())
    return RUBRIC.composite(RUBRIC.scores(json.loads(reply.content)))


def answer(context: StageContext) -> str:
    """A sentence from the report."""
    asked = (
        f"{context.results['write']}\n\nQuestion: {context.input}\nAnswer in one short sentence."
    )
    return context.chat(asked, max_tokens=24, temperature=0.0).content


STAGES: list[Stage[Any]] = [
    Stage("find", "finder", find),
    Stage("write", "writer", write),
    Stage("judge", "judge", judge),
    Stage("answer", "answerer", answer),
]

if __name__ == "__main__":
    with Shim(CONFIG, share=True) as shim, RunTrace() as run:
        Roles.of(shim)  # refuses an evaluator below Q8_0, and one that is the producer itself
        for item in Pipeline(STAGES, shim).iterate(REQUESTS):
            print(f"{item.input} {item.results['answer']}")
            print(f"  from: {item.results['write']} ({item.results['judge']:.1f} of 10)")
            for stage, reply in ((r.stage, r.reply) for r in item.replies):
                how = "cold" if reply.residency.cold else "warm"
                gone = ", ".join(reply.residency.evicted) or "nothing"
                print(f"  {stage:<9} {how} {reply.total_s:5.2f} s, evicted {gone}")
    print(f"trace: {run.trace_path} (open it with `keepwarm trace open`, or in ui.perfetto.dev)")
