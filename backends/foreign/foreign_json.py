"""The one reader for JSON that keepwarm did not just write: endpoints' answers, state files, messages.

The standard parser raises `RecursionError` on 2,000 nested lists, reads `NaN` and `1e999` as numbers that
break comparisons, and reads integers that no float can hold. Here each of these is a `BadJson`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64
MAX_INTEGER_DIGITS: Final = 40
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""May stand before all else that a server sends, and says nothing."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BadJson(ValueError):
    """Text that is not JSON, or JSON that no program should take: too deep, not finite."""


def parse_json(data: bytes | str, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text, with finite numbers and at most `max_depth` nested lists and objects.

    Raises:
        BadJson: the text is something else; the message says what was found.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if raw.count(b"[") + raw.count(b"{") > max_depth and _depth(raw) > max_depth:
        raise BadJson(f"JSON nested deeper than {max_depth} levels")
    # Whether a number can be too large is seen without reading the numbers: 40 digits with an exponent of
    # two are below 1e140. For 1,000 vectors of 768 numbers this costs 20 ms beside the parser's 260,
    # looking at each number 80. The last look is slower; it tells a number from a part of a name such as
    # `b1-0c1e570`.
    shape = raw.translate(_SHAPE)
    large = _LONG in shape or (_LARGE_EXPONENT.search(shape) and _LARGE_NUMBER.search(shape))
    decoder = _CHECKING if large else _PLAIN
    try:
        return decoder.decode(raw.decode("utf-8"))
    except RecursionError:
        raise BadJson(f"JSON nested deeper than {max_depth} levels") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        # Another ValueError is not the parser's: a handler of the program's own signals may raise here.
        raise BadJson(f"not JSON: {error}") from error


def _depth(raw: bytes) -> int:
    deepest = depth = 0
    for bracket in _STRING.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson(f"a number that is not finite: {text[:40]}")
    return number


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise BadJson(f"an integer of {len(text)} digits")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise BadJson(f"a number that is not finite: {name}")


_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * (MAX_INTEGER_DIGITS + 1)
_LARGE_EXPONENT = re.compile(rb"e\+?000")
_LARGE_NUMBER = re.compile(rb"(?:^|[\s:,\[])-?[0.]+e\+?000")
_PLAIN = json.JSONDecoder(parse_constant=_no_constant)
_CHECKING = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_no_constant)
