"""Fixtures of the catalog's tests."""

from __future__ import annotations

import pytest

from shim.keeper.catalog import refresh


@pytest.fixture(autouse=True)
def every_request_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files change here from one request to the next; no test waits out the age of a look."""
    monkeypatch.setattr(refresh, "LOOK_AGAIN_S", 0.0)
