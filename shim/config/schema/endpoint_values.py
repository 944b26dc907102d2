"""Values of the key `endpoints`: several addresses of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from shim.config.schema.values import parse_url

MOST_ENDPOINTS = 64
_KEYS = ("url", "weight", "concurrency", "model_id")


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """One of several endpoints of a model. `model_id`: the model's name there, where it differs."""

    url: str
    weight: float = 1.0
    concurrency: int | None = None
    model_id: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As it is written."""
        found = {name: getattr(self, name) for name in _KEYS}
        return {name: value for name, value in found.items() if value is not None}


def parse_endpoints(value: object) -> tuple[EndpointEntry, ...]:
    """Endpoints as tables with a `url`, or as addresses."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("not a list of endpoints")
    if len(value) > MOST_ENDPOINTS:
        raise ValueError(f"{len(value)} endpoints")
    found = tuple(_parsed(one) for one in value)
    if len({(one.url, one.model_id) for one in found}) < len(found):
        raise ValueError("the same endpoint twice")
    return found


def first_url(given: Mapping[str, Any]) -> str | None:
    """The address of the first endpoint of a model, where it has several; None where they are malformed."""
    try:
        return parse_endpoints(given["endpoints"])[0].url if "endpoints" in given else None
    except ValueError:
        return None


def _parsed(value: object) -> EndpointEntry:
    if isinstance(value, EndpointEntry):
        return value
    given = {"url": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "url" not in given:
        raise ValueError("an endpoint without a url")
    if unknown := sorted(str(name) for name in given.keys() - set(_KEYS)):
        raise ValueError(f"an endpoint with {unknown[0]!r}")
    weight, most, name = given.get("weight", 1.0), given.get("concurrency"), given.get("model_id")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1e6:
        raise ValueError("a weight that is no number above 0")
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError("a concurrency that is no whole number above 0")
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError("a model_id that is no text")
    return EndpointEntry(parse_url(given["url"]), float(weight), most, name)


Endpoints = Annotated[
    tuple[EndpointEntry, ...],
    PlainValidator(parse_endpoints),
    PlainSerializer(lambda found: [one.to_mapping() for one in found], return_type=list),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["url"],
                "properties": {
                    "url": {"type": "string"},
                    "weight": {"type": "number"},
                    "concurrency": {"type": "integer"},
                    "model_id": {"type": "string"},
                },
            },
        }
    ),
]
