"""`HARNESS_ENDPOINTS`: endpoints by tag from the environment, over the entries of the file.

The variable holds JSON, or the path of a JSON file: `{"TAG": {"url": ..., "model_id": ...,
"backend": "vllm" | "openai" | "llama.cpp"}}`; `type` is read as `backend`. Quotes around the whole, which
Docker's env files keep, are no part of it. No error quotes a value, because it may be a key or hold one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget.errors import ConfigError
from shim.config.problems import Problem, dotted, given_twice, raise_for, show_value, suggest
from shim.config.schema.document import Config, check_mapping
from shim.config.schema.values import expanded

VARIABLE = "HARNESS_ENDPOINTS"
ENDPOINT_KEYS = ("url", "model_id", "backend", "type", "api_key_env")
KEPT_KEYS = ("role", "priority", "max_queue")
"""Keys of the file's entry that still hold when an endpoint takes its place."""
SHAPE = 'JSON such as {"TAG": {"url": "http://host:8000", "model_id": "m", "backend": "vllm"}}'
MAX_BYTES = 1 << 20
NOT_SHOWN = "a value that is not shown"


def read_endpoints(env: Mapping[str, str], cwd: Path) -> dict[str, dict[str, Any]]:
    """The endpoints by tag, checked, `type` renamed to `backend`; empty without the variable.

    Raises:
        ConfigError: lists every mistake, by tag and key.
    """
    value = _unquoted(env.get(VARIABLE, ""))
    if not value:
        return {}
    label, text = VARIABLE, value
    if not value.startswith(("{", "[", '"')):
        path = _path(value, cwd)
        label, text = f"{path} ({VARIABLE})", _read(path)
    table = _parse(label, text)
    problems: list[Problem] = []
    endpoints = {tag: _endpoint(tag, item, problems) for tag, item in table.items()}
    if not problems:
        _, found = check_mapping(Config, {"models": endpoints}, base=None)
        problems = [
            Problem(p.key.removeprefix("models."), _without_value(p), p.allowed, p.line)
            for p in found
        ]
    raise_for(label, problems)
    return endpoints


def _unquoted(value: str) -> str:
    """The value without a mark of the byte order, and without quotes around the whole."""
    value = value.strip().removeprefix("\ufeff").strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        inner = value[1:-1].strip()
        return inner.replace('\\"', '"') if inner.startswith('{\\"') else inner
    return value


def _without_value(problem: Problem) -> str:
    """What was found, where that is no value: a name, an unknown key, or what is missing."""
    said = problem.found
    return said if said.startswith(("an unknown key", "the name ", "nothing")) else NOT_SHOWN


def _path(value: str, cwd: Path) -> Path:
    try:
        return Path(cwd, expanded(value))
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: found a path; {error}.") from None


def _read(path: Path) -> str:
    """The text of the file that the variable names."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(
                f"{VARIABLE}: {path} has more than {MAX_BYTES} bytes; that is no list of endpoints."
            )
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        # The reason alone: an OSError's own words quote the path, which may be a key by mistake.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{VARIABLE}: found neither JSON nor the path of a file that can be read ({reason}); its "
            "value may hold keys and is not shown.",
            hint=f"Give {SHAPE}, or the path of a file that holds it.",
        ) from None


def _parse(label: str, text: str) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := given_twice(pairs):
            raise ConfigError(f"{label}: {', '.join(map(show_value, twice))} is given twice.")
        return dict(pairs)

    try:
        table = json.loads(text, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        why = f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        why = str(error)  # an integer of more digits than Python converts
    except RecursionError:
        why = "nested too deeply"
    else:
        if isinstance(table, dict):
            return table
        why = f"found {_kind(table)}"
    raise ConfigError(f"{label}: {why}.", hint=f"Allowed: {SHAPE}.", file=label)


def _kind(value: object) -> str:
    return show_value(value) if isinstance(value, list) else NOT_SHOWN


def _endpoint(tag: str, item: object, problems: list[Problem]) -> dict[str, Any]:
    if not isinstance(item, dict):
        problems.append(Problem(dotted([tag]), _kind(item), SHAPE))
        return {}
    for name in item:
        if name not in ENDPOINT_KEYS:
            found = f"an unknown key{suggest(name, ENDPOINT_KEYS)}"
            problems.append(Problem(dotted([tag, name]), found, ", ".join(ENDPOINT_KEYS)))
    if "type" in item and item.get("backend", item["type"]) != item["type"]:
        found = "another one than backend"
        problems.append(Problem(dotted([tag, "type"]), found, "one of the two, or both equal"))
    if "url" not in item:
        problems.append(Problem(dotted([tag, "url"]), "nothing", "the endpoint's address"))
    endpoint = {name: value for name, value in item.items() if name != "type"}
    if "type" in item:
        endpoint["backend"] = item["type"]
    return endpoint


def with_endpoints(
    data: Mapping[str, Any], endpoints: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A file's mapping with the endpoints in place of the entries of the same names."""
    models = dict(data.get("models", {}))
    for tag, endpoint in endpoints.items():
        kept = {k: v for k, v in models.get(tag, {}).items() if k in KEPT_KEYS}
        models[tag] = {**kept, **endpoint}
    return {**data, "models": models}
