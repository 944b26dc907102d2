"""What a model's template or its lack of senses makes of a request is said, with the real llama-server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import InvalidRequest, Shim

pytestmark = pytest.mark.real

_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
_KEY = b"tokenizer.chat_template"
_WITH_TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def shim(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A model with a template, the same without one, and with one that has tools."""
    with_template = tiny_models["producer"]
    folder = tmp_path_factory.mktemp("templates")
    raw = with_template.read_bytes()
    assert raw.count(_KEY) == 1
    base = folder / "base.gguf"
    base.write_bytes(raw.replace(_KEY, b"tokenizer.chat_templatX"))
    template = folder / "tools.jinja"
    template.write_text(_WITH_TOOLS)
    models: dict[str, Any] = {
        "chats": {"path": str(with_template)},
        "base": {"path": str(base)},
        "given": {"path": str(base), "engine_args": ["--chat-template", "chatml"]},
        "tools": {"path": str(base), "engine_args": ["--chat-template-file", str(template)]},
    }
    for entry in models.values():
        entry["context"] = 512
    with Shim({"budget": {"device": "host", "limit": "2GiB"}, "models": models}) as made:
        yield made


def test_a_model_without_a_template_is_said_to_have_none(shim: Shim) -> None:
    """ChatML is assumed for it; a template of the configuration's counts as its own."""
    (warning,) = shim.chat("base", "x", max_tokens=1).warnings
    assert "has no chat template" in warning
    assert "ChatML" in warning
    assert shim.chat("chats", "x", max_tokens=1).warnings == ()
    assert shim.chat("given", "x", max_tokens=1).warnings == ()


def test_tools_that_a_template_has_no_place_for_are_said_to_be_left_out(shim: Shim) -> None:
    """In the reply of a call and of a stream; where a call is required, nothing is sent."""
    (warning,) = shim.chat("chats", "x", tools=_TOOLS, max_tokens=1).warnings
    assert "no place for tools" in warning
    with shim.stream("chats", "x", tools=_TOOLS, tool_choice="auto", max_tokens=1) as stream:
        list(stream)
    assert stream.reply.warnings == (warning,)
    one: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
    for choice in ("required", one):
        with pytest.raises(InvalidRequest, match="no place for tools"):
            shim.chat("chats", "x", tools=_TOOLS, tool_choice=choice, max_tokens=1)
    assert shim.chat("tools", "x", tools=_TOOLS, max_tokens=1).warnings == ()


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}, "audio"),
        ({"type": "hologram"}, "unsupported"),
    ],
)  # fmt: skip
def test_what_a_text_model_cannot_take_in_is_the_callers_mistake(
    shim: Shim, part: dict[str, Any], what: str
) -> None:
    """Images, sound, parts of an unknown kind."""
    with pytest.raises(InvalidRequest, match=what):
        shim.chat("chats", [{"role": "user", "content": [part]}], max_tokens=1)
