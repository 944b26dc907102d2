"""Going on with an answer that was interrupted: llama.cpp's `/completion`, by token ids.

The prompt is all tokens so far, as the engine counts them; the result are deltas as of a chat. Only
requests that `can_resume` allows are resumed, because their tokens alone restore their state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.answers.fields import COUNT, figures, kind
from backends.openai.answers.reading import StreamReader
from backends.openai.chat_messages import checked_messages
from backends.openai.masking import Secrets
from backends.openai.options import wire_options
from backends.openai.protocol import ChatRequest, Delta, Timings, Usage, read_figures
from budget.errors import EndpointError

RESUME_PATH: Final = "/completion"
TEMPLATE_PATH: Final = "/apply-template"

_RESTORABLE: Final = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed"}
    | {"presence_penalty", "frequency_penalty"}
)
_FINISHES: Final = {"limit": "length"}
_PREDICTED: Final = {"tokens_predicted": COUNT}


def can_resume(request: ChatRequest) -> bool:
    """Whether an interrupted answer could go on from its tokens alone.

    False with a grammar, a schema, tools or log probabilities, because their state is not in the tokens.
    False with a seed at a temperature above 0, because its random numbers would begin anew. False with
    parts of messages that are not text.
    """
    return can_restore(request.options) and of_texts(request.messages)


def can_restore(options: Mapping[str, Any]) -> bool:
    """The part of `can_resume` that depends on the options."""
    if options.get("seed") is not None and options.get("temperature") != 0:
        return False
    return _samples(options)


def is_plain(request: ChatRequest) -> bool:
    """Whether a request is texts and options of sampling alone, so that any text answers it."""
    return _samples(request.options) and of_texts(request.messages)


def _samples(options: Mapping[str, Any]) -> bool:
    return {name for name, value in options.items() if value is not None} <= _RESTORABLE


def of_texts(messages: Sequence[Mapping[str, Any]] | str) -> bool:
    """Whether all parts of messages are texts. What is no messages is refused when the body is made."""
    return isinstance(messages, str) or (
        isinstance(messages, list | tuple)
        and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages)
    )


def counted(request: ChatRequest) -> ChatRequest:
    """The same request, with token counts in every piece of its stream."""
    return replace(request, options={**request.options, "extra": {"timings_per_token": True}})


@dataclass(frozen=True, slots=True)
class AnswerSoFar:
    """The progress of a streamed answer.

    `timings` are those of its last piece, `text` is all text so far. `told` are the tokens of the text;
    there may be more, of which the engine holds the text back: half a character, the begin of a stop.
    `plain`: it has only content, and the count of its tokens is known.
    """

    timings: Timings | None = None
    text: str = ""
    plain: bool = True
    told: int = 0

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> AnswerSoFar:
        """The progress that these pieces made."""
        timings = next((d.timings for d in reversed(deltas) if d.timings), None)
        plain = not any(d.reasoning or d.tool_calls or d.logprobs for d in deltas)
        told = next((d.timings for d in reversed(deltas) if d.content and d.timings), None)
        text = "".join(d.content for d in deltas)
        return cls(timings, text, plain, told.predicted_n if told else 0)

    def by_text(self) -> AnswerSoFar:
        """The same without the tokens whose text did not come: the engine says these anew."""
        if self.timings is None or not self.told:
            return self
        return replace(self, timings=replace(self.timings, predicted_n=self.told))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.timings.prompt_n + self.timings.cache_n if self.timings else 0

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return self.timings.predicted_n if self.timings else 0

    def resumable(self, request: ChatRequest) -> bool:
        """Whether there is something to go on from, and something left to say."""
        most = request.options.get("max_tokens")
        return self.plain and self.tokens > 0 and (most is None or self.tokens < most)


def tokens_to_repeat(
    request: ChatRequest, tokens: Sequence[int] | None, progress: AnswerSoFar
) -> int | None:
    """How many tokens of the answer `tokens` lack and the engine has to say again; None: use the text.

    An engine that stops right after a token has not evaluated it, so that its state lacks it. At
    temperature 0 the same one comes again. (The text is tokenised anew and evaluated in other
    batches, after which other tokens may follow.) The bytes of half a character cannot be told
    from those before them.
    """
    if tokens is None:
        return None
    missing = progress.prompt_tokens + progress.tokens - len(tokens)
    if missing == 0:
        return 0
    greedy = request.options.get("temperature") == 0
    return 1 if missing == 1 and greedy and progress.text[-1:].isascii() else None


def resume_body(
    endpoint: Endpoint,
    request: ChatRequest,
    prompt: Sequence[int] | str,
    progress: AnswerSoFar,
    repeat: int = 0,
) -> bytes:
    """The body that goes on from `prompt`: all tokens so far but the last `repeat`, or their text."""
    options = dict(wire_options(endpoint, request.options))
    most = options.pop("max_tokens", None)
    body = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "n_predict": -1 if most is None else most - progress.tokens + repeat,
        "stream": True,
        "cache_prompt": True,
        "timings_per_token": True,
        **options,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def template_body(request: ChatRequest) -> bytes:
    """The body that asks for the prompt that the chat template makes of the messages."""
    return json.dumps({"messages": checked_messages(request.messages)}).encode()


def templated(answer: Mapping[str, Any]) -> str:
    """The prompt in an answer of `TEMPLATE_PATH`.

    Raises:
        EndpointError: there is none.
    """
    prompt = answer.get("prompt")
    if not isinstance(prompt, str):
        raise EndpointError(f"the engine's template gave {kind(prompt)} where a prompt is due.")
    return prompt


class ResumeReader(StreamReader):
    """Reads the stream of `RESUME_PATH`; its figures go on from those of the answer so far.

    The first `repeat` tokens were said before: they are neither given on nor counted again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        secrets: Secrets,
        content_type: str,
        before: AnswerSoFar,
        repeat: int = 0,
    ) -> None:
        super().__init__(endpoint, secrets, content_type)
        self._before = before.timings
        self._repeat = repeat

    def _delta(self, value: Mapping[str, Any]) -> Delta:
        content = value.get("content")
        if not isinstance(content, str):
            raise EndpointError(f"the engine sent {kind(content)} where a token is due.")
        content = self._content.join(content)
        now = read_figures(value)[1]
        if (now.predicted_n if now else self._repeat) <= self._repeat:
            content = ""
        timings = self._timings(now) if now else None
        if not value.get("stop"):
            return Delta(content=content, timings=timings)
        self.done = True
        before = self._before or Timings()
        total = before.predicted_n + self._new(figures(value, _PREDICTED)["tokens_predicted"])
        usage = Usage(before.prompt_n + before.cache_n, total, before.cache_n)
        finish = _FINISHES.get(str(value.get("stop_type")), "stop")
        return Delta(content=content, finish_reason=finish, usage=usage, timings=timings)

    def _timings(self, now: Timings) -> Timings:
        # Without an answer before it, the prompt is the whole prompt.
        before = self._before = self._before or Timings(now.prompt_n, now.cache_n)
        return Timings(
            before.prompt_n,
            before.cache_n,
            before.prompt_ms + now.prompt_ms,
            before.predicted_n + self._new(now.predicted_n),
            before.predicted_ms + now.predicted_ms,
        )

    def _new(self, predicted: int) -> int:
        return max(0, predicted - self._repeat)
