"""Images as parts of messages, at a real vLLM that keepwarm starts on a small model that sees."""

from __future__ import annotations

import pytest

from budget.errors import InvalidRequest
from shim import Shim
from tests.engines.pictures import png, see
from tools.vllm_server import vllm_model, vllm_python

pytestmark = pytest.mark.vllm


def test_a_vision_model_of_vllm_sees_the_image_it_is_sent() -> None:
    """Another image is another answer, and the same one the same; what is no image is refused."""
    model = {"backend": "vllm", "path": str(vllm_model(sees=True)), "python": str(vllm_python())}
    config = {
        "budget": {"device": "host", "limit": "8GiB"},
        "models": {"sees": {**model, "context": 512}},
    }
    with Shim(config, inline=True) as shim:

        def asked(*urls: str) -> tuple[int, list[float]]:
            reply = shim.chat("sees", see(*urls), max_tokens=3, temperature=0, logprobs=True)
            return reply.usage.prompt_tokens, [one["logprob"] for one in reply.logprobs]

        red, blue = asked(png(255, 0, 0)), asked(png(0, 0, 255))
        assert red[0] == blue[0] > asked()[0]
        assert red[1] != pytest.approx(blue[1], abs=0.05)
        assert asked(png(255, 0, 0))[1] == pytest.approx(red[1], abs=0.05)
        assert asked(png(255, 0, 0), png(0, 0, 255))[0] > red[0]
        with pytest.raises(InvalidRequest, match="image"):
            asked("data:image/png;base64,aGVsbG8=")
