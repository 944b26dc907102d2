"""classify -> retrieve -> produce -> evaluate with four models, under a budget for about half of them.

`make models` makes the models (random weights, so their text is noise). Then
`python examples/pipeline.py` prints what every stage waited for, and where the trace is.
"""

from pathlib import Path
from typing import Any

from harness import Pipeline, Roles, Stage, StageContext
from shim import Shim
from traces import RunTrace

MODELS = Path(__file__).resolve().parents[1] / "models" / "demo"
PASSAGES = [
    "A password is reset from the sign-in page; its link holds for an hour.",
    "A parcel that has not moved for three days is searched for by the carrier.",
]
REQUESTS = [
    "The link in the mail for my new password is no longer valid. What now?",
    "My parcel has been in the depot for four days, and the birthday is on Saturday.",
]


def model(file: str, **options: Any) -> dict[str, Any]:
    """An entry of the configuration; `keepwarm.toml` has the same keys."""
    return {"path": str(MODELS / file), "context": 512, "n_batch": 128, "n_ubatch": 128} | options


CONFIG = {
    "budget": {"device": "host", "limit": "300MB"},
    "models": {
        "classifier": model("classifier-Q4_K_M.gguf", context=4096),
        "embedder": model("embedder-F16.gguf", role="embedder", context=128),
        "producer": model("producer-Q4_K_M.gguf", role="producer"),
        "evaluator": model("evaluator-Q8_0.gguf", role="evaluator"),  # pinned by its role
    },
}


def classify(context: StageContext) -> str:
    """Ask a small model what the request is about."""
    return context.chat(f"account or parcel? {context.input}", max_tokens=4).content


def retrieve(context: StageContext) -> str:
    """The passage whose vector points most nearly where the request's does."""
    asked, *known = context.embed([context.input, *PASSAGES]).vectors
    likeness = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in known]
    return PASSAGES[likeness.index(max(likeness))]


def produce(context: StageContext) -> str:
    """Answer from the passage."""
    group, passage = context.results["classify"], context.results["retrieve"]
    return context.chat(f"{group}: {context.input}\nUse: {passage}", max_tokens=24).content


def evaluate(context: StageContext) -> str:
    """Grade the answer."""
    return context.chat(f"Grade from 1 to 5: {context.results['produce']}", max_tokens=4).content


STAGES = [
    Stage("classify", "classifier", classify),
    Stage("retrieve", "embedder", retrieve),
    Stage("produce", "producer", produce),
    Stage("evaluate", "evaluator", evaluate),
]

if __name__ == "__main__":
    with Shim(CONFIG) as shim, RunTrace() as run:
        Roles.of(shim)  # refuses an evaluator below Q8_0, and one that is the producer itself
        for item in Pipeline(STAGES, shim).iterate(REQUESTS):
            for stage, reply in ((r.stage, r.reply) for r in item.replies):
                how = "cold" if reply.residency.cold else "warm"
                gone = ", ".join(reply.residency.evicted) or "nothing"
                print(f"{stage:<9} {how} {reply.total_s:5.2f} s, evicted {gone}")
    print(f"trace: {run.trace_path} (open it with `keepwarm trace open`, or in ui.perfetto.dev)")
