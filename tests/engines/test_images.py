"""Images as parts of messages, with the real llama-server and a small projector."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from shim import InvalidRequest, Shim
from tools.projector import fill_weights, write_projector

pytestmark = pytest.mark.real

SIDE = 56


def png(red: int, green: int, blue: int) -> str:
    """An image of one colour, as the URL of a part."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = (b"\0" + bytes((red, green, blue)) * SIDE) * SIDE
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(whole).decode()}"


def test_a_model_with_a_projector_sees_the_image_it_is_sent(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Another image is another prompt, and the same one the same; what is no image is refused."""
    small: dict[str, Any] = {"n_layers": 1, "n_embd": 64, "n_ff": 128, "heads": 2}
    small |= {"image_size": SIDE, "patch_size": 14, "model_embd": 256}
    projector = fill_weights(write_projector(tmp_path / "mmproj.gguf", **small))
    sees = {"path": str(tiny_models["producer"]), "mmproj": str(projector), "context": 1024}
    question: list[dict[str, Any]] = [{"type": "text", "text": "What is it?"}]

    with Shim({"budget": {"device": "host", "limit": "2GiB"}, "models": {"sees": sees}}) as shim:

        def asked(*urls: str) -> tuple[int, list[float]]:
            parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            messages = [{"role": "user", "content": question + parts}]
            reply = shim.chat("sees", messages, max_tokens=2, temperature=0, logprobs=True)
            return reply.usage.prompt_tokens, [one["logprob"] for one in reply.logprobs]

        red, blue = asked(png(255, 0, 0)), asked(png(0, 0, 255))
        assert red[0] == blue[0] > asked()[0]
        assert red[1] != blue[1]
        assert asked(png(255, 0, 0))[1] == pytest.approx(red[1], abs=1e-3)
        with pytest.raises(InvalidRequest):
            asked("data:image/png;base64,aGVsbG8=")
