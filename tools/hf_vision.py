"""The part of a small Idefics3 that sees, as vLLM reads it: a vision tower, its connector, its processor.

Of the models with a Llama inside it is one that vLLM imports without torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

IMAGE: Final = "<image>"
SPECIALS: Final = [IMAGE, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SIDE: Final = 56
_PATCH: Final = 14
_WIDE: Final = 64
_HEADS: Final = 2
_LAYERS: Final = 2
_SHUFFLE: Final = 2
"""So many patches beside and below each other become one token."""
_PATCHES: Final = (SIDE // _PATCH) ** 2


def vision_config(text: dict[str, Any], image_token: int) -> dict[str, Any]:
    """The configuration of the whole around that of its language model."""
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "text_config": text,
        "vision_config": {
            "model_type": "idefics3_vision",
            "hidden_size": _WIDE,
            "intermediate_size": 2 * _WIDE,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "image_size": SIDE,
            "patch_size": _PATCH,
        },
        "image_token_id": image_token,
        "scale_factor": _SHUFFLE,
        "pad_token_id": text["pad_token_id"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def processor_files() -> dict[str, Any]:
    """How an image becomes what the tower reads, by file name."""
    return {
        "processor_config.json": {
            "processor_class": "Idefics3Processor",
            "image_seq_len": _PATCHES // _SHUFFLE**2,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": False,
            "size": {"longest_edge": SIDE},
            "max_image_size": {"longest_edge": SIDE},
        },
    }


def vision_tensors(n_embd: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the tower and of its connector to a language model of this width."""
    tower = "model.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", (_WIDE, 3, _PATCH, _PATCH)
    yield f"{tower}.embeddings.patch_embedding.bias", (_WIDE,)
    yield f"{tower}.embeddings.position_embedding.weight", (_PATCHES, _WIDE)
    for layer in range(_LAYERS):
        block = f"{tower}.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _with_bias(f"{block}.self_attn.{name}", (_WIDE, _WIDE))
        yield from _with_bias(f"{block}.layer_norm1", (_WIDE,))
        yield from _with_bias(f"{block}.layer_norm2", (_WIDE,))
        yield from _with_bias(f"{block}.mlp.fc1", (2 * _WIDE, _WIDE))
        yield from _with_bias(f"{block}.mlp.fc2", (_WIDE, 2 * _WIDE))
    yield from _with_bias(f"{tower}.post_layernorm", (_WIDE,))
    yield "model.connector.modality_projection.proj.weight", (n_embd, _WIDE * _SHUFFLE**2)


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
