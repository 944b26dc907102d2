"""Model folders in Hugging Face form, as they are found on disks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.vllm.model_folder import read_folder
from budget.errors import BadModelFile, LoadFailed
from tests.vllm.support import LLAMA, WEIGHTS, folder_of


def test_a_folder_tells_its_weights_and_its_kv_cache(tmp_path: Path) -> None:
    """Two rows of 2 heads of 64 in 4 layers, 2 bytes each."""
    found = read_folder(folder_of(tmp_path))
    assert found.weights_bytes == WEIGHTS
    assert found.kv_bytes_per_token == 4 * 2 * 2 * 64 * 2
    assert (found.context_length, found.architecture) == (4096, "LlamaForCausalLM")
    assert found.quantization == "bfloat16"
    assert found.files[0].name == "config.json"


@pytest.mark.parametrize(
    ("changed", "per_token"),
    [
        ({"head_dim": 128}, 4 * 2 * 2 * 128 * 2),
        ({"torch_dtype": "float32"}, 4 * 2 * 2 * 64 * 4),
        ({"torch_dtype": None, "dtype": "float16"}, 4 * 2 * 2 * 64 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 4 * (512 + 64) * 2),
        ({"num_key_value_heads": None}, 4 * 2 * 8 * 64 * 2),
        ({"num_hidden_layers": None}, None),
        ({"num_hidden_layers": "many"}, None),
        ({"num_attention_heads": -1}, None),
        ({"num_attention_heads": 10**30}, None),
    ],
)
def test_a_kv_cache_is_that_of_the_attention_or_unknown(
    tmp_path: Path, changed: dict[str, Any], per_token: int | None
) -> None:
    """Latent attention keeps one row a layer; a figure that makes no sense is none."""
    assert read_folder(folder_of(tmp_path, LLAMA | changed)).kv_bytes_per_token == per_token


def test_the_part_for_texts_of_a_model_with_images_counts(tmp_path: Path) -> None:
    """Its own figures stand below `text_config`."""
    nested = {"architectures": ["X"], "text_config": LLAMA, "torch_dtype": "bfloat16"}
    assert read_folder(folder_of(tmp_path, nested)).kv_bytes_per_token == 4 * 2 * 2 * 64 * 2


def test_only_one_form_of_the_weights_is_loaded(tmp_path: Path) -> None:
    """Where safetensors are there, files of another form beside them are not read."""
    folder = folder_of(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    assert read_folder(folder).weights_bytes == WEIGHTS


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, LoadFailed),
        ("{", BadModelFile),
        ("[]", BadModelFile),
        ("[" * 100_000, BadModelFile),
        ('{"a": NaN}', BadModelFile),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_its_file(
    tmp_path: Path, text: str | None, error: type[Exception]
) -> None:
    """Nothing of it is guessed."""
    folder = folder_of(tmp_path)
    config = folder / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    with pytest.raises(error, match=r"config\.json"):
        read_folder(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A clone without its large files has pointers only, of no bytes to speak of."""
    with pytest.raises(BadModelFile, match="no weights"):
        read_folder(folder_of(tmp_path, weights=0))
