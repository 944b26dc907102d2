"""The keys of `backend = "server"`: what a command may leave open, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.server.command import filled, named
from budget.errors import ConfigError
from shim.config import Config
from shim.config.verbs import verbs_of


def config(**keys: Any) -> Config:
    """A configuration of one server."""
    return Config.from_mapping({"models": {"s": keys}}, base=Path("/srv"))


def test_a_command_makes_it_a_server_in_the_folder_of_its_file() -> None:
    """`backend` and `cwd` need not be written; a server that chats also streams."""
    entry = config(command=["run", "--port", "{port}"], can=["chat"]).models["s"]
    assert entry.backend == "server"
    assert entry.cwd == Path("/srv")
    assert not entry.remote
    assert verbs_of(entry) == {"chat", "stream", "http"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"command": ["run"]}, r"no \{port\} or \{socket\}"),
        ({"command": ["run", "{port}", "{socket}"]}, r"both \{port\} and \{socket\}"),
        ({"command": ["run", "{prot}", "{port}"]}, r"\{prot\}.*did you mean \{port\}\?"),
        ({"command": ["run", "{port}", "{key}"]}, r"other users of this machine could read"),
        ({"command": ["run", "{port}", "{model}"]}, r"\{model\} without `files`"),
        ({"command": []}, "no program"),
        ({"command": "run {port}"}, "not a list of texts"),
        ({"command": ["run", "{port}"], "ready": "health"}, "not a path"),
        ({"command": ["run", "{port}"], "can": ["sing"]}, "no server does"),
        ({"command": ["run", "{port}"], "context": 4096}, "has no such key"),
        ({"command": ["run", "{port}"], "url": "http://localhost:1"}, "the model is remote"),
        ({"backend": "server"}, "without a command"),
        ({"path": "/m.gguf", "command": ["run", "{port}"]}, "has no such key"),
    ],
)
def test_what_a_server_cannot_be_given_is_refused_by_name(keys: dict[str, Any], words: str) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError, match=words):
        config(**keys)


def test_braces_of_json_and_of_shells_stay_as_they_are() -> None:
    """Only a name alone in braces is one of ours."""
    text = '{"port": 1} ${HOME} {port} {{x}}'
    assert named(['{"a": 1}', "{port}x"]) == {"port"}
    assert filled(text, {"port": "80"}) == '{"port": 1} ${HOME} 80 {{x}}'
