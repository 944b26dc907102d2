"""One request after the other: tokens, the text that may be said, and how it ended."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.llama.binding.chat_jobs import ChatJob
from backends.llama.binding.chat_prompts import Prompts
from backends.llama.binding.native_model import NativeModel, Refused, pieces


@dataclass
class Slot:
    """What the only slot does, for signs of life; read by other threads."""

    busy: bool = False
    unread: bool = False
    """Whether it waits until its caller reads."""
    task: int = 0
    prompt: int = 0
    evaluated: int = 0
    decoded: int = 0

    def row(self) -> dict[str, Any]:
        """As llama-server's `/slots` has it."""
        return {
            "id": 0,
            "id_task": self.task,
            "is_processing": self.busy,
            "is_unread": self.unread,
            "n_prompt_tokens": self.prompt,
            "n_prompt_tokens_processed": self.evaluated,
            "next_token": [{"n_decoded": self.decoded}],
        }


@dataclass
class AnswerCounts:
    """An answer in the making. Times are of `time.perf_counter`."""

    n_prompt: int = 0
    n_cached: int = 0
    n_said: int = 0
    finish: str = "stop"
    begun_s: float = field(default_factory=time.perf_counter)
    prompted_s: float = 0.0
    ended_s: float = 0.0

    def usage(self) -> dict[str, Any]:
        """The tokens, as OpenAI's API has them."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_said,
            "total_tokens": self.n_prompt + self.n_said,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        }

    def timings(self) -> dict[str, Any]:
        """The times, as llama-server has them."""
        return {
            "cache_n": self.n_cached,
            "prompt_n": self.n_prompt - self.n_cached,
            "prompt_ms": 1e3 * (self.prompted_s - self.begun_s),
            "predicted_n": self.n_said,
            "predicted_ms": 1e3 * (self.ended_s - self.prompted_s),
        }


class Text:
    """The text of tokens, of which what may be the beginning of a text of `stop` is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, data: bytes, *, last: bool = False) -> str:
        """What can be said after these bytes."""
        self._held += self._decoder.decode(data, last)
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            said, self._held = self._held[: min(found)], ""
            return said
        keep = 0 if last else max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        said, self._held = self._held[:cut], self._held[cut:]
        return said

    def _overlap(self, stop: str) -> int:
        """How many of the last characters may begin `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)


class Answering:
    """Answers requests with one model. One thread calls it.

    Args:
        model: the model.
        slot: what it does, kept up to date.
    """

    def __init__(self, model: NativeModel, slot: Slot) -> None:
        self.model = model
        self.prompts = Prompts(model)
        self._slot = slot

    def begin(self, job: ChatJob) -> tuple[AnswerCounts, list[int]]:
        """The prompt's tokens.

        Raises:
            Refused: there are too many of them, or the messages are refused.
        """
        answer = AnswerCounts()
        tokens = self.model.tokens(self.prompts.prompt(job.messages, job.given))
        if not tokens:
            raise Refused("the prompt is empty")
        answer.n_prompt = len(tokens)
        if len(tokens) >= self.model.n_ctx:
            raise Refused(
                f"the request exceeds the available context size ({self.model.n_ctx} tokens)",
                "exceed_context_size_error",
                n_prompt_tokens=len(tokens),
                n_ctx=self.model.n_ctx,
            )
        return answer, tokens

    def run(
        self,
        job: ChatJob,
        answer: AnswerCounts,
        tokens: list[int],
        gone: Callable[[], bool],
        evaluated: Callable[[int], None] | None,
    ) -> Iterator[str]:
        """The pieces of the answer; `answer` is whole at the end.

        Args:
            job: the request.
            answer: from `begin`.
            tokens: from `begin`.
            gone: whether the caller has hung up; it is asked at each step.
            evaluated: told how many tokens of the prompt are evaluated.
        """
        sampler = self.model.sampled(job.sampling)
        try:
            answer.n_cached = done = self.model.reuse(tokens)
            self._slot.prompt, self._slot.evaluated = len(tokens), done
            for part in pieces(tokens[done:], self.model.n_batch):
                if gone():
                    return
                self.model.evaluate(part)
                done += len(part)
                self._slot.evaluated = done
                if evaluated is not None:
                    evaluated(done)
            answer.prompted_s = time.perf_counter()
            yield from self._said(job, answer, sampler.next, gone)
            answer.ended_s = time.perf_counter()
        finally:
            sampler.close()

    def _said(
        self,
        job: ChatJob,
        answer: AnswerCounts,
        choose: Callable[[], int],
        gone: Callable[[], bool],
    ) -> Iterator[str]:
        text = Text(job.stop)
        room = self.model.n_ctx - answer.n_prompt
        while True:
            token = choose()
            answer.n_said += 1
            self._slot.decoded = answer.n_said
            ends = self.model.is_end(token)
            if not ends and (said := text.add(self.model.piece(token))):
                yield said
            if ends or text.stopped:
                break
            if answer.n_said >= min(job.max_tokens, room):
                answer.finish = "length"
                break
            if gone():
                return
            self.model.evaluate([token])
        if not text.stopped and (rest := text.add(b"", last=True)):
            yield rest
