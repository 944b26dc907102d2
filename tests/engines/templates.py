"""Chat templates, run by the real llama-server: one with a place for tools, and those that do harm.

Those that do harm do it for a message "go" alone, so that the engine loads; those `AT_LOAD` do it for every
message, which llama-server meets first when it tries the template out while it loads.
"""

from __future__ import annotations

TOOLS = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)

CHANNELS = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>"
    "{% endfor %}<|start|>assistant{# <|channel|>analysis<|message|> <|channel|>final #}"
)
"""Every answer has to have the format of its channels, as llama-server reads it."""

_SPIN = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
_GROW = (
    "{% set ns = namespace(s='words that fill the memory of an engine') %}"
    "{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
)
_ON_GO = "{% if messages[0].content == 'go' %}BODY{% endif %}{{ messages[0].content }}"

SPINS = _ON_GO.replace("BODY", _SPIN)
"""Runs for hours."""
GROWS = _ON_GO.replace("BODY", _GROW)
"""Builds a text of terabytes, by doubling it."""
SPINS_AT_LOAD = _SPIN + "{{ messages[0].content }}"
GROWS_AT_LOAD = _GROW + "{{ messages[0].content }}"


def with_template(template: str) -> tuple[str, str]:
    """The engine arguments that give llama-server a chat template."""
    return ("--chat-template", template)
