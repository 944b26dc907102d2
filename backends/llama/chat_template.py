"""What an engine says of its chat template, asked once when it has loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.machine.unix_http import control_request
from budget.errors import EndpointError

CHATML: Final = (
    "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "  {{- '<|im_start|>assistant\n' -}}\n"
    "{%- endif -%}"
)
"""The template that llama.cpp takes for a model that has none."""
_LIMIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Whether the model, or its configuration, brings one, and whether that has a place for tools."""

    own: bool = True
    has_tools: bool = True


async def chat_template(socket_path: Path, extra: Sequence[str]) -> ChatTemplate:
    """What `/props` says; the best is believed of an engine that does not say."""
    try:
        status, found = await control_request(socket_path, "GET", "/props", timeout_s=_LIMIT_S)
    except (OSError, EndpointError):
        return ChatTemplate()
    if status != 200 or not isinstance(found, Mapping):
        return ChatTemplate()
    caps = found.get("chat_template_caps")
    has_tools = caps.get("supports_tools") is not False if isinstance(caps, Mapping) else True
    given = any(word.split("=", 1)[0].startswith("--chat-template") for word in extra)
    return ChatTemplate(given or found.get("chat_template") != CHATML, has_tools)
