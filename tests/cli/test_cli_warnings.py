"""What a reply does not honour is shown by `keepwarm chat`."""

from __future__ import annotations

from shim.cli.commands.chat import reply_json, warnings_of
from shim.replies import Reply


def test_every_warning_of_a_reply_is_a_sentence_on_stderr() -> None:
    """Those of the template, and each place of a schema that was dropped."""
    reply = Reply("m", "x", relaxed=("$.a.uniqueItems",), warnings=("It has no chat template.",))
    first, second = warnings_of(reply)
    assert first == "It has no chat template."
    assert "$.a.uniqueItems" in second
    assert warnings_of(Reply("m", "x")) == []


def test_the_json_of_a_reply_carries_its_warnings() -> None:
    """As lists of texts."""
    told = reply_json(Reply("m", "x", relaxed=("$.a",), warnings=("w",)))
    assert (told["relaxed"], told["warnings"]) == (["$.a"], ["w"])
