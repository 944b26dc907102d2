"""Values of the keys of Python models: what is made, with which arguments, in which interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from backends.python.ready_made import READY_MADE
from shim.config.schema.values import (
    AMOUNT_JSON,
    ENV_NAME,
    TEXT_JSON,
    Amount,
    parse_limit,
    parse_path,
    parse_size,
)

AMOUNT_OF_BYTES = 'a number of bytes, or a text with a unit ("600MiB"); above zero'
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MOST = 1 << 20


def parse_factory(value: object) -> str:
    """`module:Name`, or the name of a ready-made factory."""
    if isinstance(value, str) and (value in READY_MADE or _FACTORY.fullmatch(value)):
        return value
    raise ValueError("neither module:Name nor a factory that comes with keepwarm")


def parse_declared(value: object) -> Amount:
    """A number of bytes above zero."""
    parse_limit(value)
    return parse_size(value)


def parse_options(value: object) -> dict[str, Any]:
    """A table of values that JSON can carry."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("not a table")
    try:
        if len(json.dumps(value)) > _MOST:
            raise ValueError(f"more than {_MOST} bytes")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"a value that JSON cannot carry ({error})") from None
    return dict(value)


def parse_environment(value: object) -> dict[str, str]:
    """A table of texts by names of variables."""
    if not isinstance(value, Mapping):
        raise ValueError("not a table")
    for name, text in value.items():
        if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
            raise ValueError("a name that no environment variable has")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{name} is not a text")
    return dict(value)


def parse_interpreter(value: object, info: ValidationInfo) -> str:
    """The absolute path of a program. Links are kept: an environment's python is one."""
    return str(parse_path(value, info))


def _table(values: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"type": "object", "additionalProperties": values})


DeclaredBytes = Annotated[
    Amount, PlainValidator(parse_declared), PlainSerializer(str, return_type=str), AMOUNT_JSON
]
Factory = Annotated[str, PlainValidator(parse_factory), TEXT_JSON]
Options = Annotated[dict[str, Any], PlainValidator(parse_options), _table({})]
Environment = Annotated[
    dict[str, str], PlainValidator(parse_environment), _table({"type": "string"})
]
Interpreter = Annotated[str, PlainValidator(parse_interpreter), TEXT_JSON]
