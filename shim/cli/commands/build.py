"""`keepwarm build`: measure the machine and the models once, and write the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from budget.errors import ConfigError
from shim.cli.console.context import config_of
from shim.cli.console.output import StatusLine, print_json, print_table, size
from shim.cli.console.said_lines import say, say_all
from shim.cli.console.shared_options import json_option
from shim.config import Config
from shim.placement.build_plan import PlanBuilder, one_device
from shim.placement.from_plan import Decisions, decide
from shim.placement.plan_file import PlacementPlan, plan_path, usable_plan, write_plan
from shim.placement.requested import asked_of


@click.command()
@click.option("--quick", "effort", flag_value="quick", default="quick", help="Take half a minute.")
@click.option(
    "--full", "effort", flag_value="full", help="Take minutes: more types, layers and rounds."
)
@click.option("--device", help="Measure for this device instead of [budget] device.")
@click.option("--check", is_flag=True, help="Measure nothing; say whether the plan is valid here.")
@json_option
@click.pass_context
def build(
    ctx: click.Context,
    effort: Literal["quick", "full"],
    device: str | None,
    *,
    check: bool,
    as_json: bool,
) -> None:
    """Measure this machine and the models once, and write the plan that later starts use.

    Figures that were measured before and are still valid are kept.
    """
    config = with_device(config_of(ctx), device)
    if check:
        checked(config, as_json=as_json)
        return
    before, why = usable_plan()
    if why:
        say_all(why, err=True)
    line = StatusLine()
    builder = PlanBuilder(config, effort, line.tell)
    try:
        plan = builder.build(before)
    finally:
        line.clear()
    path = write_plan(plan)
    result = report(plan, builder, decisions_of(config, plan))
    if as_json:
        print_json({"file": path, **result})
    else:
        _print(path, plan, result)


def with_device(config: Config, device: str | None) -> Config:
    """The configuration with another device budgeted."""
    if device is None:
        return config
    data = config.to_mapping()
    budget = {key: value for key, value in data.get("budget", {}).items() if key != "devices"}
    data["budget"] = {**budget, "device": device}
    return Config.from_mapping(data, label="--device")


def decisions_of(config: Config, plan: PlacementPlan) -> Decisions:
    """The joint decisions over the plan's entries, as a start makes them."""
    devices = one_device(config)
    asked = {
        name: asked_of(entry, devices.first.name, devices.servers())
        for name, entry in config.models.items()
        if entry.is_gguf
    }
    return decide(plan, asked, devices.limits)


def checked(config: Config, *, as_json: bool) -> None:
    """Say whether the plan is valid here, which models it lacks, and which decisions changed since.

    Raises:
        ConfigError: there is no plan, or it is not valid here, with the reason.
    """
    plan, why = usable_plan()
    if plan is None:
        raise ConfigError(
            why or f"There is no plan at {plan_path()}.", hint="Run `keepwarm build`."
        )
    found = decisions_of(config, plan)
    result = {
        "file": plan_path(),
        "valid": True,
        "effort": plan.effort,
        "missing": found.missing,
        "changes": found.changes,
    }
    if as_json:
        print_json(result)
        return
    say(f"{plan_path()} is valid here ({plan.effort}).")
    _say_differences(found.missing, found.changes)


def _say_differences(missing: Mapping[str, str], changes: Sequence[str]) -> None:
    for name, reason in missing.items():
        say_all(reason, before=f"{name} is not in the plan: ")
    for change in changes:
        say(f"a decision changed: {change}")


def report(plan: PlacementPlan, builder: PlanBuilder, found: Decisions) -> dict[str, Any]:
    """What `build --json` prints, without the file's path."""
    return {
        "effort": plan.effort,
        "llama_build": plan.build,
        "hardware": dict(plan.hardware),
        "machine": plan.machine.to_json(),
        "overhead": asdict(builder.overhead),
        "measured": builder.measured,
        "kept": [name for name in found.decided if name not in builder.measured],
        "errors": builder.errors,
        "models": {
            name: {
                **row.decision.to_json(),
                "load_s": row.entry.load_s,
                "measured": dict(row.entry.measured),
            }
            for name, row in found.decided.items()
        },
        "changes": found.changes,
    }


def _print(path: Path, plan: PlacementPlan, result: dict[str, Any]) -> None:
    for name, side in plan.machine.sides.items():
        rates = ", ".join(f"{kind} {rate / 1e9:.1f}" for kind, rate in side.bytes_per_s.items())
        say(
            f"{name}: decode reads {rates} GB/s; {side.token_s * 1e3:.2f} ms a token, "
            f"{side.layer_s * 1e6:.0f} us a layer, {side.crossing_s * 1e3:.2f} ms a split"
        )
    load = plan.machine.load
    by_storage = {"staged": load.staged_bytes_per_s, "cold": load.cold_bytes_per_s}
    for storage, modes in by_storage.items():
        told = ", ".join(f"{mode} {rate / 1e9:.2f}" for mode, rate in modes.items())
        say(f"{storage} loads: {told} GB/s")
    own = result["overhead"]
    say(
        f"start of an engine: {load.start_s:.2f} s; its own memory: "
        f"{size(own['base_bytes'] + own['code_bytes'])}, {own['layer_bytes'] / 1e3:.0f} kB a layer, "
        f"{own['token_bytes']} bytes a token of vocabulary"
    )
    click.echo()
    rows = [
        (
            name,
            ", ".join(row["devices"]),
            row["n_gpu_layers"],
            row["n_ctx"],
            row["slots"],
            size(sum(row["bytes_by_device"].values())),
            f"{row['tokens_per_s']:.1f}",
            f"{row['load_s']:.2f}",
            row["reason"],
        )
        for name, row in result["models"].items()
    ]
    figures = ("layers", "context", "slots", "bytes", "tokens/s", "load s")
    print_table(("model", "device", *figures, "why"), rows, right=figures)
    _say_differences(result["errors"], result["changes"])
    click.echo()
    say(f"The plan was written to {path}.")
