"""What the tests of carried KV state share: shapes, a keeper's folder, conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shim import Reply, Shim

Message = dict[str, str]

STORY = "The harbour was quiet, and the old lighthouse keeper counted the ships again. " * 12
QUESTIONS = (f"{STORY} What did he see?", "And what then?", "Which friend was there with him?")


def config(models: Mapping[str, Mapping[str, Any]], folder: Path, **kv: Any) -> dict[str, Any]:
    """A configuration whose KV state lies in a folder of the test."""
    return {
        "budget": {"device": "host"},
        "kv": {"folder": str(folder), **kv},
        "models": {name: {"context": 2048, **entry} for name, entry in models.items()},
    }


@dataclass
class Talk:
    """A conversation that grows, at temperature 0."""

    shim: Shim
    model: str
    messages: list[Message] = field(default_factory=list)

    def say(self, text: str, max_tokens: int = 16) -> Reply:
        """One more question and its answer."""
        self.messages.append({"role": "user", "content": text})
        reply = self.shim.chat(self.model, self.messages, max_tokens=max_tokens, temperature=0.0)
        self.messages.append({"role": "assistant", "content": reply.content})
        return reply


def prompted(reply: Reply) -> int:
    """Tokens of a reply's prompt; its answer's text may come back as other tokens."""
    assert reply.timings is not None
    return reply.timings.cache_n + reply.timings.prompt_n


def cached(reply: Reply) -> int:
    """Tokens of the prompt that were not evaluated again."""
    assert reply.timings is not None
    return reply.timings.cache_n


def saved_files(folder: Path) -> list[Path]:
    """The files of saved state, whichever engine's."""
    return sorted(folder.glob("*/*.kv"))


def history(shim: Shim) -> dict[str, Any]:
    """Loads and evictions of the keeper so far."""
    return shim._session.connections.ask("history", since_ns=0, until_ns=1 << 62)
