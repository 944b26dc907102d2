"""What a vLLM server says of its work, from the lines that it shows to Prometheus."""

from __future__ import annotations

import re
from typing import Final

from backends.base import SlotSigns

_LINE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|prompt_tokens_total|generation_tokens_total)"
    rb"\{[^}\n]*\} ([0-9.]+(?:e[+-]?[0-9]+)?)",
    re.MULTILINE,
)


def slot_signs(metrics: bytes) -> SlotSigns | None:
    """The state of all requests together; None where the text is not vLLM's.

    Requests that wait count as busy: a server that answers none of them makes no progress.
    """
    sums: dict[bytes, float] = {}
    for name, value in _LINE.findall(metrics):
        sums[name] = sums.get(name, 0.0) + float(value)
    if b"num_requests_running" not in sums:
        return None
    running = int(sums[b"num_requests_running"])
    busy = running + int(sums.get(b"num_requests_waiting", 0.0))
    counted = (b"prompt_tokens_total", b"generation_tokens_total")
    moved = tuple(int(sums.get(name, 0.0)) for name in counted)
    return SlotSigns(busy, prompting=running > 0, moved=(moved,))
