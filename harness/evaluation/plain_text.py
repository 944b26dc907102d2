"""What one model wrote, as text in the messages of another one. Pure.

An engine reads the special tokens of a chat template also where they stand in a message. A text that has
them could end its own message and go on as the user, or as the judge's own verdict.
"""

from __future__ import annotations

import re
from typing import Final

_SPECIAL: Final = re.compile(
    r"<(?=\|[^\s<>|]+\|>)"  # ChatML, Llama 3, Phi, Command R, gpt-oss
    r"|<(?=\uff5c[^\s<>\uff5c]+\uff5c>)"  # DeepSeek
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|cls|sep|\w{1,20}_of_\w{1,20})>)"  # Llama 2, Gemma
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|CALL_ID|THINK"
    r"|BOS|EOS|PAD|UNK|MASK|CLS|SEP|gMASK|sop)\])"  # Mistral, BERT, GLM
)
_RULE: Final = re.compile("~{3,}")


def plain(text: str) -> str:
    """The text with a blank in each special token, which is none then; any other text is untouched."""
    return _SPECIAL.sub(lambda sign: sign[0] + " ", text)


def fenced(text: str) -> str:
    """The text between two lines that are not in it."""
    rule = "~" * (1 + max((len(found) for found in _RULE.findall(text)), default=2))
    return f"{rule}\n{text}\n{rule}"
