"""`factory = "sentence-transformers"`: vectors of texts, or the relevance of documents for a query.

Options: `model` (a folder or a name), `kind` ("embedder" or "reranker"), and those of
`SentenceTransformer` or `CrossEncoder`. An embedder takes `texts` and the options of `encode`, a reranker
`query`, `documents` and the options of `predict`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class SentenceTransformers:
    """A SentenceTransformer or a CrossEncoder."""

    def __init__(self, model: str, kind: str = "embedder", **options: Any) -> None:
        if kind not in ("embedder", "reranker"):
            raise ValueError(f'kind is {kind!r}; "embedder" and "reranker" are allowed')
        library = importlib.import_module("sentence_transformers")
        self._reranks = kind == "reranker"
        make = library.CrossEncoder if self._reranks else library.SentenceTransformer
        self._model = make(model, **options)

    def __call__(
        self,
        texts: Sequence[str] = (),
        *,
        query: str | None = None,
        documents: Sequence[str] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """`vectors`, one row a text; or `scores`, one a document, the higher the more relevant."""
        if self._reranks:
            if query is None:
                raise ValueError("a reranker takes `query` and `documents`")
            pairs = [(query, document) for document in documents]
            return {"scores": self._model.predict(pairs, **options)}
        batch = [texts] if isinstance(texts, str) else list(texts)
        return {"vectors": self._model.encode(batch, convert_to_numpy=True, **options)}
