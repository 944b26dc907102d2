"""Tokens of a text, or of messages as a chat would send them (`/tokenize` of llama-server and vLLM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.answers.fields import WrongField, a_list
from backends.openai.chat_messages import checked_messages
from backends.openai.protocol import ChatRequest, encode
from backends.openai.requests.verb_request import Question, VerbRequest
from budget.errors import InvalidRequest

TOKENIZE_PATH: Final = "/tokenize"


class TokenizeRequest(VerbRequest[tuple[int, ...]]):
    """The ids of the tokens of a text, or of a chat's messages.

    A text stands alone: no token that a model begins every prompt with is added. Messages are those of the
    prompt of a chat, with all that the model's template adds.

    Args:
        text: a text or OpenAI chat messages.

    Raises:
        InvalidRequest: it is neither.
    """

    verb = "tokenize"

    def __init__(self, text: Sequence[Mapping[str, Any]] | str) -> None:
        if not isinstance(text, str | list | tuple):
            raise InvalidRequest("tokenize() takes a string or a list of messages.")
        self.text = text

    @property
    def chat(self) -> ChatRequest | None:
        """The chat that the messages are of; None for a text."""
        return None if isinstance(self.text, str) else ChatRequest(self.text)

    def question(self, endpoint: Endpoint) -> Question:
        """The request of a text, or of messages where the server renders these itself (vLLM)."""
        if not isinstance(self.text, str):
            messages = checked_messages(self.text, endpoint.backend)
            body = {"model": endpoint.model_id, "messages": messages}
            return Question(TOKENIZE_PATH, encode({**body, "add_generation_prompt": True}))
        return self._of_text(endpoint, self.text, special=False)

    def of_prompt(self, endpoint: Endpoint, prompt: str) -> Question:
        """The request of a prompt that llama-server rendered; it adds what a chat's prompt begins with."""
        return self._of_text(endpoint, prompt, special=True)

    @staticmethod
    def _of_text(endpoint: Endpoint, text: str, *, special: bool) -> Question:
        # llama.cpp reads the first two, vLLM the others; another server may be either.
        body: dict[str, Any] = {}
        if endpoint.backend != "vllm":
            body |= {"content": text, "add_special": special}
        if endpoint.backend != "llama.cpp":
            body |= {"model": endpoint.model_id, "prompt": text, "add_special_tokens": special}
        return Question(TOKENIZE_PATH, encode(body))

    def parsed(self, answer: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids in `tokens`."""
        if "tokens" not in answer:
            raise WrongField("tokens", None, "a list of numbers")
        return _ids(a_list(answer["tokens"], "tokens"))

    def payload(self) -> Mapping[str, Any]:
        """`text`; a Python model has no template that would make a prompt of messages.

        Raises:
            InvalidRequest: there are messages.
        """
        if not isinstance(self.text, str):
            raise InvalidRequest(
                "A Python model counts the tokens of a text, not of messages.",
                hint="Give the text, or ask a model that can chat.",
            )
        return {"text": self.text}

    def of_result(self, result: Any) -> tuple[int, ...]:
        """`tokens`, a list of numbers."""
        found: Any = result.get("tokens") if isinstance(result, Mapping) else result
        listed = found.tolist() if hasattr(found, "tolist") else found
        return _ids(a_list(listed, "tokens"))


def _ids(found: Any) -> tuple[int, ...]:
    if not all(type(token) is int for token in found):
        raise WrongField("tokens", list(found), "a list of whole numbers")
    return tuple(found)
