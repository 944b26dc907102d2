"""Reranking: documents by their relevance for a query (`/v1/rerank` of llama-server, vLLM and others)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.answers.fields import WrongField, objects
from backends.openai.protocol import Usage, check_texts, encode, read_figures
from backends.openai.requests.verb_request import Question, VerbRequest, number
from budget.errors import InvalidRequest

RERANK_PATH: Final = "/v1/rerank"


@dataclass(frozen=True, slots=True)
class Ranking:
    """Places of documents in what was sent, each with its score, the most relevant first."""

    ranked: tuple[tuple[int, float], ...]
    usage: Usage = field(default_factory=Usage)


class RerankRequest(VerbRequest[Ranking]):
    """Which documents are relevant for a query.

    Args:
        query: what is looked for.
        documents: texts.
        top_n: at most so many of them are named; None names all.

    Raises:
        InvalidRequest: an argument is not of its type, or empty.
    """

    verb = "rerank"

    def __init__(self, query: str, documents: Sequence[str], top_n: int | None = None) -> None:
        if not isinstance(query, str) or not query:
            raise InvalidRequest("rerank() takes a query that is a non-empty string.")
        if not isinstance(documents, Sequence):
            raise InvalidRequest(f"rerank() takes a list of documents, not {documents!r:.60}.")
        check_texts("rerank", documents)
        if top_n is not None and (type(top_n) is not int or top_n < 1):
            raise InvalidRequest(
                f"top_n is {top_n!r:.60}; a whole number above 0 is allowed.", option="top_n"
            )
        self._query = query
        self._documents = list(documents)
        self._top_n = top_n

    def question(self, endpoint: Endpoint) -> Question:
        """The request; all scores are asked for, because not every server cuts them at the same place."""
        if not endpoint.capabilities.rerank:
            raise InvalidRequest(
                f"{endpoint.name} does not rerank.",
                hint='Configure it with role = "reranker".',
            )
        body = {"query": self._query, "documents": self._documents}
        return Question(RERANK_PATH, encode({"model": endpoint.model_id, **body}))

    def parsed(self, answer: Mapping[str, Any]) -> Ranking:
        """The ranking of `results`, or of `data` where a server calls them so."""
        rows = objects(answer.get("results", answer.get("data")), "results")
        scores: dict[int, float] = {}
        for row in rows:
            place = row.get("index")
            score = row.get("relevance_score", row.get("score"))
            if type(place) is not int or not 0 <= place < len(self._documents) or place in scores:
                raise WrongField("index of a result", place, "the place of a document")
            scores[place] = number(score, "relevance_score")
        if len(scores) != len(self._documents):
            raise WrongField("results", list(rows), f"a list of {len(self._documents)}")
        return Ranking(self._ordered(scores), read_figures(answer)[0] or Usage())

    def payload(self) -> Mapping[str, Any]:
        """`query` and `documents`."""
        return {"query": self._query, "documents": self._documents}

    def of_result(self, result: Any) -> Ranking:
        """`scores`, one a document, the higher the more relevant."""
        found: Any = result.get("scores") if isinstance(result, Mapping) else result
        listed = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(listed, list) or len(listed) != len(self._documents):
            due = f"one of {len(self._documents)} numbers"
            raise WrongField("scores", listed, due)
        # A cross-encoder of one label may give a row of one score for each document.
        flat = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in listed]
        return Ranking(self._ordered({i: number(s, "a score") for i, s in enumerate(flat)}))

    def _ordered(self, scores: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
        ranked = sorted(scores.items(), key=lambda row: (-row[1], row[0]))
        return tuple(ranked[: self._top_n])
