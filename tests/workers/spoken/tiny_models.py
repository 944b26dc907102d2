"""Makes tiny models with random weights: `python tiny_models.py FOLDER`, in `.venv-python-models`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "and", "home", "is", "warm"]


def make(folder: Path) -> None:
    """An embedder, a reranker and a classifier, each a few hundred kilobytes."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    for name, labels in (("reranker", 1), ("classifier", 2)):
        config.num_labels = labels
        transformers.BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    transformers.BertModel(config).save_pretrained(folder / "embedder")
    tokenizer.save_pretrained(folder / "embedder")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
