"""A real vLLM that pools: `role = "embedder"` with a model folder."""

from __future__ import annotations

import math

import pytest

from budget.errors import InvalidRequest
from shim import Shim
from tools.vllm_server import vllm_model, vllm_python

pytestmark = pytest.mark.vllm


def test_an_embedder_gives_a_vector_for_each_text_and_does_not_chat() -> None:
    """Vectors of unit length, in the order of the texts; equal texts have equal vectors."""
    model = {"backend": "vllm", "path": str(vllm_model()), "python": str(vllm_python())}
    config = {
        "budget": {"device": "host", "limit": "8GiB"},
        "models": {"vectors": {**model, "role": "embedder", "context": 512}},
    }
    with Shim(config, inline=True) as shim:
        reply = shim.embed("vectors", ["one text", "another one", "one text"])
        assert len(reply.vectors) == 3
        assert all(math.isclose(math.hypot(*v), 1.0, rel_tol=1e-2) for v in reply.vectors)
        assert reply.vectors[0] == pytest.approx(reply.vectors[2], abs=1e-2)
        assert reply.vectors[0] != pytest.approx(reply.vectors[1], abs=1e-2)
        with pytest.raises(InvalidRequest, match="vectors"):
            shim.chat("vectors", "hello")
