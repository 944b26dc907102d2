"""Values as people write them in a configuration, parsed to the units that the program uses.

Every parser takes a value of TOML or JSON and returns the parsed value, or raises a `ValueError` that
explains the mistake. The `Annotated` types below carry the parser into the pydantic models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

FOREVER = -1.0
"""The keep_alive and idle_exit that have no time-out."""

MAX_BYTES = 2**63 - 1
UNIT_BYTES: Mapping[str, int] = {
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)},
    **{f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)},
}
_UNITS_BY_LOWER = {unit.lower(): size for unit, size in UNIT_BYTES.items()}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,12})?)\s*([A-Za-z%]*)", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", re.ASCII)
_BETWEEN_PARTS = re.compile(r"(?<=[a-z])[ \t]+(?=[0-9])")
_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PLAIN_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", re.ASCII)
_HF = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?:[^\s:][^\n\r:]*", re.ASCII)
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
_OF_A_PROCESS = ("/proc/", "/dev/fd/", "/dev/stdin", "/dev/stdout", "/dev/stderr")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of bytes, or a share (0 to 1) of a device's total; exactly one of them is set."""

    fixed_bytes: int | None = None
    share: float | None = None

    def resolve(self, total_bytes: int) -> int:
        """The bytes this means on a device of `total_bytes`."""
        if self.fixed_bytes is not None:
            return self.fixed_bytes
        return int(total_bytes * (self.share or 0.0))

    def __str__(self) -> str:
        if self.fixed_bytes is not None:
            return f"{self.fixed_bytes}B"
        return f"{round((self.share or 0.0) * 100, 10):g}%"


def parse_amount(value: object) -> Amount:
    """Bytes from an int, a text with a unit ("6GiB", "500MB") or a percentage ("80%")."""
    if isinstance(value, Amount):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Amount(fixed_bytes=_checked_bytes(value))
    if not isinstance(value, str):
        raise ValueError("not a number of bytes")
    match = _NUMBER_AND_UNIT.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a number with a unit")
    number, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if number > 100:
            raise ValueError("more than 100%")
        return Amount(share=float(number / 100))
    if unit.lower() not in _UNITS_BY_LOWER:
        raise ValueError(f'unknown unit "{unit}"' if unit else "the unit is missing")
    return Amount(fixed_bytes=_checked_bytes(int(number * _UNITS_BY_LOWER[unit.lower()])))


def _checked_bytes(value: int) -> int:
    if value < 0:
        raise ValueError("a negative number of bytes")
    if value > MAX_BYTES:
        raise ValueError("more bytes than any machine has")
    return value


class Span(int):
    """A preferred number, and the least that it may be shrunk to; as an int it is the preferred one."""

    least: int

    def __new__(cls, preferred: int, least: int | None = None) -> Self:
        """A preferred number; without `least` it may not be shrunk."""
        made = super().__new__(cls, preferred)
        made.least = preferred if least is None else least
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        return type(self), (int(self), self.least)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int):
            return NotImplemented
        return int(self) == int(other) and self.least == getattr(other, "least", int(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((int(self), self.least))

    def __repr__(self) -> str:
        if self.least == int(self):
            return str(int(self))
        return f"{{ min = {self.least}, preferred = {int(self)} }}"

    __str__ = __repr__


def _span(most: int) -> Callable[[object], Span]:
    def parse(value: object) -> Span:
        if isinstance(value, Span):
            return value
        if isinstance(value, Mapping):
            if set(value) != {"min", "preferred"}:
                raise ValueError("a table needs exactly min and preferred")
            least, preferred = (_counted(value[name], most) for name in ("min", "preferred"))
            if least > preferred:
                raise ValueError("min is above preferred")
            return Span(preferred, least)
        return Span(_counted(value, most))

    return parse


def _counted(value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"not a whole number from 1 to {most}")
    return value


def _span_data(value: int) -> int | dict[str, int]:
    least = getattr(value, "least", int(value))
    return int(value) if least == int(value) else {"min": least, "preferred": int(value)}


def _span_json(most: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": 1, "maximum": most}
    table = {
        "type": "object",
        "properties": {"min": number, "preferred": number},
        "required": ["min", "preferred"],
        "additionalProperties": False,
    }
    return WithJsonSchema({"anyOf": [number, table]})


def parse_limit(value: object) -> Amount:
    """An amount above zero."""
    amount = parse_amount(value)
    if not (amount.fixed_bytes or amount.share):
        raise ValueError("a limit of zero holds no model")
    return amount


def parse_reserve(value: object) -> Amount:
    """An amount that leaves something: less than 100%."""
    amount = parse_amount(value)
    if amount.share is not None and amount.share >= 1.0:
        raise ValueError("a reserve of everything leaves nothing")
    return amount


def parse_size(value: object) -> Amount:
    """A number of bytes; 0 for none at all."""
    amount = parse_amount(value)
    if amount.fixed_bytes is None:
        raise ValueError("a percentage, of nothing in particular")
    return amount


def parse_seconds(value: object) -> float:
    """Seconds from a number, or from a text such as "90s", "5m", "1h 30m"; never negative."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
        if not 0 <= seconds < 1e12:
            raise ValueError("not a duration of 0 seconds or more")
        return seconds
    if not isinstance(value, str):
        raise ValueError("not a duration")
    text = _BETWEEN_PARTS.sub("", value.strip())
    if _PLAIN_NUMBER.fullmatch(text):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("not a duration")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_some_seconds(value: object) -> float:
    """Seconds as `parse_seconds`, above 0."""
    seconds = parse_seconds(value)
    if seconds <= 0.0:
        raise ValueError("no time at all")
    return seconds


def parse_timeout(value: object) -> float:
    """Seconds as `parse_seconds`, or anything negative (-1, "-1", "-1m") for no time-out, as in Ollama."""
    if isinstance(value, str) and value.strip().startswith("-"):
        return FOREVER if parse_seconds(value.strip()[1:]) > 0 else 0.0
    if isinstance(value, int | float) and -1e12 < value < 0:
        return FOREVER
    return parse_seconds(value)


def parse_path(value: object, info: ValidationInfo) -> Path:
    """An absolute path; a relative one starts at the folder of the configuration file."""
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError("not a path")
    base = (info.context or {}).get("base") or Path.cwd()
    path = Path(base, expanded(value)).absolute()
    if os.path.normpath(path).startswith(_OF_A_PROCESS):
        # The keeper would read another file than its client, so both would report all models as changed.
        raise ValueError("a path that means another file in each process")
    return path


def expanded(value: str | Path) -> Path:
    """A path with `~` replaced by the home folder.

    Raises:
        ValueError: there is no such home.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("there is no home that ~ could mean") from None


def parse_paths(value: object, info: ValidationInfo) -> tuple[Path, ...]:
    """One path, or a list of them."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(parse_path(item, info) for item in items)


def parse_gpu_layers(value: object) -> int | Literal["auto"]:
    """A number of layers, or "auto"."""
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000:
        return value
    raise ValueError("not a number of layers")


def parse_url(value: object) -> str:
    """The address before `/v1`, without a trailing slash, credentials, query or fragment.

    Another version's root stays (`/v4`, `/v1beta/openai`), and so does `/chat/completions` after a root
    that names none: `backends.openai` adds no `/v1` to these.
    """
    if not isinstance(value, str):
        raise ValueError("not an address")
    try:
        parts = urlsplit(value.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(str(error)) from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", value.strip()):
        raise ValueError("not an http or https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address must not hold a user or a password; use api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("an address must not hold a query or a fragment")
    path = parts.path.rstrip("/")
    root = path.removesuffix("/chat/completions")
    if root == path or re.search(r"/v\d+\w*(/openai)?$", root):
        path = root.removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def matching(pattern: re.Pattern[str], what: str) -> Any:
    """A parser of texts that match a pattern; `what` is what its error says of others."""

    def parse(value: object) -> str:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise ValueError(what)

    return parse


_parse_place = matching(_HF, "not owner/repo:file")


def parse_hf(value: object) -> str:
    """A file of a repository on the Hub. Other programs take a quantization in its place."""
    found = str(_parse_place(value))
    name = found.rpartition(":")[2]
    if not name.lower().endswith(".gguf"):
        raise ValueError(
            f"{name} is no name of a file; the repository's Files tab has those of each quantization"
        )
    return found


parse_model_name = matching(_MODEL_NAME, "not a name of a model")

AMOUNT_JSON = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGTkmgt]?[Ii]?[Bb]|%)\s*$"},
        ]
    }
)
_SECONDS_JSON: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d)?\s*)+$"},
    ]
}
_TIMEOUT_JSON = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^-?([0-9]+(\.[0-9]+)?(ms|s|m|h|d)?\s*)+$"},
    ]
}
_TEXT_AMOUNT = PlainSerializer(str, return_type=str)
TEXTS = PlainSerializer(
    lambda items: [str(item) for item in items], return_type=list[str], when_used="json"
)
"""Writes a tuple as a list of texts."""
TEXT_JSON = WithJsonSchema({"type": "string"})
TEXTS_JSON = WithJsonSchema({"type": "array", "items": {"type": "string"}})
_PATH_JSON = {"type": "string", "minLength": 1}

Limit = Annotated[Amount, PlainValidator(parse_limit), _TEXT_AMOUNT, AMOUNT_JSON]
Reserve = Annotated[Amount, PlainValidator(parse_reserve), _TEXT_AMOUNT, AMOUNT_JSON]
Size = Annotated[Amount, PlainValidator(parse_size), _TEXT_AMOUNT, AMOUNT_JSON]
Seconds = Annotated[float, PlainValidator(parse_seconds), WithJsonSchema(_SECONDS_JSON)]
SomeSeconds = Annotated[float, PlainValidator(parse_some_seconds), WithJsonSchema(_SECONDS_JSON)]
Timeout = Annotated[float, PlainValidator(parse_timeout), WithJsonSchema(_TIMEOUT_JSON)]
FilePath = Annotated[Path, PlainValidator(parse_path), WithJsonSchema(_PATH_JSON)]
FilePaths = Annotated[
    tuple[Path, ...],
    PlainValidator(parse_paths),
    TEXTS,
    WithJsonSchema({"anyOf": [_PATH_JSON, {"type": "array", "items": _PATH_JSON}]}),
]
MAX_CONTEXT = 2**31 - 1
MAX_SLOTS = 256
Context = Annotated[
    Span,
    PlainValidator(_span(MAX_CONTEXT)),
    PlainSerializer(_span_data),
    _span_json(MAX_CONTEXT),
]
Slots = Annotated[
    Span, PlainValidator(_span(MAX_SLOTS)), PlainSerializer(_span_data), _span_json(MAX_SLOTS)
]
GpuLayers = Annotated[
    int | Literal["auto"],
    PlainValidator(parse_gpu_layers),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0}]}),
]
Url = Annotated[
    str, PlainValidator(parse_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})
]
HfFile = Annotated[
    str,
    PlainValidator(parse_hf),
    WithJsonSchema({"type": "string", "pattern": "^[^/]+/[^/:]+:.+$"}),
]
EnvName = Annotated[
    str,
    PlainValidator(matching(ENV_NAME, "not a name of an environment variable")),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
]
ModelName = Annotated[
    str,
    PlainValidator(parse_model_name),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"}),
]
