"""Three agents and three models, in a budget for two of them.

The writer and the editor share one file, so they share its engine and its bytes. Their model and the
judge's are pinned while they work. A second judge then cannot fit, whatever would be evicted. Its load is
denied after `max_wait`, with the three numbers that say why. Run `python examples/three_agents.py`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from textwrap import fill
from typing import Any

from harness import Judge
from harness.demo.reports import RUBRIC, FactSheet, judge_prompt, sheets
from harness.demo.reports.trained import trained_model
from shim import AdmissionDenied, Shim
from shim.paths import cache_dir

FOLDER = cache_dir() / "examples"


def model(which: Any, quantization: str, **options: Any) -> dict[str, Any]:
    """An entry of the configuration; `keepwarm.toml` has the same keys."""
    return {"path": str(trained_model(which, quantization, FOLDER)), "context": 1024, **options}


def configured() -> dict[str, Any]:
    """Four names for three models, and bytes for two."""
    models = {
        "writer": model("producer", "Q4_K_M"),
        "editor": model("producer", "Q4_K_M"),
        "judge": model("evaluator", "Q8_0"),
        "second_judge": model("evaluator", "F16"),
    }
    budget: dict[str, Any] = {"device": "host", "reserve": 0, "max_wait": "1s"}
    with Shim({"budget": budget, "models": models}, inline=True, share=True) as shim:
        needed: Mapping[str, Any] = shim.what_if(["writer", "second_judge"])["bytes"]
    limit = sum(int(amount) for devices in needed.values() for amount in devices.values())
    return {"budget": {**budget, "limit": limit}, "models": models}


def write(shim: Shim, sheet: FactSheet, agent: str) -> str:
    """A report by the writer or the editor: the same engine, another seed."""
    seed = {"writer": 1, "editor": 2}[agent]
    return shim.chat(agent, sheet.task, max_tokens=96, temperature=1.0, seed=seed).content


def run(shim: Shim, sheet: FactSheet) -> None:
    """Two agents write, the third judges both; the better report is shown."""
    judge = Judge(shim, RUBRIC, "judge", prompt=judge_prompt)
    with ThreadPoolExecutor(2) as agents:
        texts = list(agents.map(lambda one: write(shim, sheet, one), ("writer", "editor")))
    scores = [judge.evaluate(sheet.task, text).composite for text in texts]
    best = scores.index(max(scores))
    print(f"  writer {scores[0]:4.1f}, editor {scores[1]:4.1f} of 10: {texts[best]}", flush=True)


def held(shim: Shim) -> str:
    """The engines that are loaded, with the names that each serves and its bytes."""
    loaded = [one for one in shim.status()["engines"] if one["bytes"]]
    return ", ".join(
        f"{' and '.join(one['models'])} ({sum(one['bytes'].values()) / 2**20:.1f} MiB)"
        for one in loaded
    )


def main() -> None:
    """Six tasks, then a fourth model that cannot fit."""
    config = configured()
    limit = f"{config['budget']['limit'] / 2**20:.1f} MiB"
    print(
        f"writer and editor share one file, the judge has another: the limit of {limit} holds both"
    )
    with Shim(config, inline=True, share=True) as shim:
        shim.pin("writer")
        shim.pin("judge")
        print("the better of two reports on each of six people:")
        for sheet in islice(sheets(seed=3), 6):
            run(shim, sheet)
        print(f"loaded once and shared: {held(shim)}")
        try:
            shim.load("second_judge")
        except AdmissionDenied as error:
            print(fill(f"the second judge does not fit beside them: {error}", 100))


if __name__ == "__main__":
    main()
