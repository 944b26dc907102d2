"""Names of the conventions are theirs, of one version, and stand in one file."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.schemas import Schemas

from traces import names

ROOT = Path(__file__).parents[2]
KNOWN = {
    value
    for module in (error_attributes, gen_ai_attributes, gen_ai_metrics)
    for value in vars(module).values()
    if isinstance(value, str)
}


def test_every_name_of_the_conventions_is_one_of_theirs() -> None:
    """A name that was mistyped, or that the conventions dropped, would be found by no dashboard."""
    ours = {v for v in vars(names).values() if isinstance(v, str) and v.startswith("gen_ai.")}
    assert len(ours) > 10
    assert ours - KNOWN == set()
    assert names.CONVENTIONS in {schema.value for schema in Schemas}


def test_names_of_the_conventions_stand_in_one_file() -> None:
    """The next version is one file to change."""
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.value}"
        for package in ("shim", "traces", "harness", "backends", "budget")
        for path in (ROOT / package).rglob("*.py")
        if path != Path(inspect.getfile(names)) and "gen_ai." in path.read_text("utf-8")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("gen_ai.")
    ]
    assert elsewhere == []
