"""Records of runs: how the file of one is read, and the digest by which an edit is seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from shim import InvalidRequest, OutsideError
from shim.paths import open_regular


def content_of(file: Path, begun_by: str) -> bytes:
    """All of a record's file.

    Args:
        file: where it is.
        begun_by: the call that begins one, for a reader who looks for a record that is not there.

    Raises:
        InvalidRequest: the file is not there.
        OutsideError: it cannot be read.
    """
    try:
        with open_regular(file) as content:
            return content.read()
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{file} is not there: no run has been recorded in it.",
            hint=f"`{begun_by}` begins one.",
            file=str(file),
        ) from error
    except OSError as error:
        raise OutsideError(
            f"The record {file} cannot be read: {error.strerror or error}.", file=str(file)
        ) from error


def digest_of(data: Any) -> str:
    """The SHA-256 of JSON data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
