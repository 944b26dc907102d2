"""How an error reads: what happened, then what to do."""

from __future__ import annotations

import pytest

from budget.errors import LoadFailed


@pytest.mark.parametrize(
    ("message", "hint", "read"),
    [
        ("It failed: no space left", "Free some.", "It failed: no space left. Free some."),
        ("It failed.", "Try again.", "It failed. Try again."),
        ("Is it there?", "Look.", "Is it there? Look."),
        ("It said:\n  | oh", "Look at its log.", "It said:\n  | oh\nLook at its log."),
        ("It failed", "", "It failed"),
    ],
)
def test_a_hint_is_a_sentence_of_its_own(message: str, hint: str, read: str) -> None:
    """Also where the message ends with what another program said, without a full stop."""
    assert str(LoadFailed(message, hint=hint)) == read
