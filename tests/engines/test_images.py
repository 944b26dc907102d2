"""Images as parts of messages, with the real llama-server and a small projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim import InvalidRequest, Shim
from tests.engines.pictures import SIDE, png, see
from tools.projector import fill_weights, write_projector

pytestmark = pytest.mark.real


def test_a_model_with_a_projector_sees_the_image_it_is_sent(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Another image is another prompt, and the same one the same; what is no image is refused."""
    small: dict[str, Any] = {"n_layers": 1, "n_embd": 64, "n_ff": 128, "heads": 2}
    small |= {"image_size": SIDE, "patch_size": 14, "model_embd": 256}
    projector = fill_weights(write_projector(tmp_path / "mmproj.gguf", **small))
    sees = {"path": str(tiny_models["producer"]), "mmproj": str(projector), "context": 1024}

    with Shim({"budget": {"device": "host", "limit": "2GiB"}, "models": {"sees": sees}}) as shim:

        def asked(*urls: str) -> tuple[int, list[float]]:
            reply = shim.chat("sees", see(*urls), max_tokens=2, temperature=0, logprobs=True)
            return reply.usage.prompt_tokens, [one["logprob"] for one in reply.logprobs]

        red, blue = asked(png(255, 0, 0)), asked(png(0, 0, 255))
        assert red[0] == blue[0] > asked()[0]
        assert red[1] != blue[1]
        assert asked(png(255, 0, 0))[1] == pytest.approx(red[1], abs=1e-3)
        with pytest.raises(InvalidRequest):
            asked("data:image/png;base64,aGVsbG8=")
