"""One model and its context in llama.cpp, by the C functions that the binding declares.

`llama_cpp.Llama` is built on the same functions. It is not used, because its context has other
parameters than llama-server's (ten times the buffers of outputs, rows of logits in Python), so that the dry
measurement would not hold for it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.footprint.probe.native import Ggml
from backends.footprint.probe.parameters import context_params, model_params

_NO_MMAP: Final = 0
_PENALTY_TOKENS: Final = 64
_LAST_POOLING: Final = 3
_NO_POOLING: Final = 0
_READS: Final = True
"""Special tokens may be written out in a text."""
_SHOWN: Final = False
"""Special tokens have no text."""
_ITS_DATA: Final = True


class Refused(Exception):
    """A request that cannot be answered; `fields` is the error as llama-server would write it."""

    def __init__(self, message: str, kind: str = "invalid_request_error", **fields: Any) -> None:
        super().__init__(message)
        self.fields = {"code": 400, "message": message, "type": kind, **fields}


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults are llama-server's."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0xFFFFFFFF
    grammar: str = ""
    ignore_eos: bool = False


class NativeModel:
    """A loaded model with a context of one sequence. One thread uses it at a time.

    Args:
        binding: the binding's declarations.
        path: the GGUF file.
        args: the engine's arguments, as the dry measurement takes them.
        threads: CPU threads.

    Raises:
        RuntimeError: llama.cpp refuses the file or the context.
    """

    def __init__(self, binding: Any, path: str, args: Mapping[str, Any], threads: int) -> None:
        self._b = binding
        binding.llama_backend_init()
        devices = Ggml(Path(binding._base_path)).devices(args["devices"])
        mode = binding.LLAMA_LOAD_MODE_MMAP if args["use_mmap"] else _NO_MMAP
        model = binding.llama_model_load_from_file(
            path.encode(), model_params(binding, dict(args), devices, mode)
        )
        if not model:
            raise RuntimeError("llama.cpp refuses the file")
        params = context_params(binding, dict(args))
        params.n_threads = params.n_threads_batch = threads
        self._context = binding.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp refuses the context")
        self._model = model
        self._vocab = binding.llama_model_get_vocab(model)
        self._memory = binding.llama_get_memory(self._context)
        self._piece = ctypes.create_string_buffer(256)
        self._pieces: dict[int, bytes] = {}
        self._ends: Any = None
        self.n_ctx: int = binding.llama_n_ctx_seq(self._context)
        self.n_batch: int = min(args["n_ubatch"], binding.llama_n_batch(self._context))
        self.n_vocab: int = binding.llama_vocab_n_tokens(self._vocab)
        self.cached: list[int] = []
        """The tokens whose KV state the context has."""

    # Texts

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata."""
        size = 1 << 12
        while True:
            found = ctypes.create_string_buffer(size)
            length = self._b.llama_model_meta_val_str(self._model, key.encode(), found, size)
            if length < size:
                return found.value.decode(errors="replace") if length >= 0 else None
            size = length + 1

    def special(self, which: str) -> str:
        """The text of the token that begins (`bos`) or ends (`eos`) a text; empty without one."""
        token = getattr(self._b, f"llama_vocab_{which}")(self._vocab)
        text = self._b.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def adds(self, which: str) -> bool:
        """Whether `tokens` adds that token by itself."""
        return bool(getattr(self._b, f"llama_vocab_get_add_{which}")(self._vocab))

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, in which special tokens may be written out.

        `special`: with those that begin and end every text.
        """
        data = text.encode()
        room = len(data) + 4
        found = (ctypes.c_int32 * room)()
        count = self._b.llama_tokenize(self._vocab, data, len(data), found, room, special, _READS)
        if count < 0:
            raise Refused("the text cannot be read into tokens")
        return list(found[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; special ones have none."""
        known = self._pieces.get(token)
        if known is None:
            room = len(self._piece)
            size = self._b.llama_token_to_piece(self._vocab, token, self._piece, room, 0, _SHOWN)
            if size < 0:
                self._piece = ctypes.create_string_buffer(-size)
                return self.piece(token)
            known = self._pieces[token] = self._piece.raw[:size]
        return known

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._b.llama_vocab_is_eog(self._vocab, token))

    # Evaluation

    def reuse(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens need no evaluation; the context then ends after them."""
        same = 0
        for mine, asked in zip(self.cached, tokens[:-1], strict=False):
            if mine != asked:
                break
            same += 1
        # A window that has moved on has lost what lies before it.
        begins = self._b.llama_memory_seq_pos_min(self._memory, 0)
        whole = same == len(self.cached)
        if not whole and (begins > 0 or not self._b.llama_memory_seq_rm(self._memory, 0, same, -1)):
            same = 0
        if same == 0:
            self.forget()
        del self.cached[same:]
        return same

    def forget(self) -> None:
        """Empty the context."""
        self._b.llama_memory_clear(self._memory, _ITS_DATA)
        self.cached.clear()

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those that the context has.

        Raises:
            RuntimeError: it could not compute.
        """
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._b.llama_decode(
            self._context, self._b.llama_batch_get_one(array, len(tokens))
        )
        if status:
            self.forget()
            raise RuntimeError(f"llama.cpp could not evaluate {len(tokens)} tokens ({status})")
        self.cached += tokens

    # Sampling

    def sampled(self, how: Sampling) -> Sampler:
        """What chooses tokens for one answer; close it.

        Raises:
            Refused: the grammar cannot be read.
        """
        b, added = self._b, []
        if how.ignore_eos:
            ends = self._all_ends()
            added.append(b.llama_sampler_init_logit_bias(self.n_vocab, len(ends), ends))
        if how.grammar:
            grammar = b.llama_sampler_init_grammar(self._vocab, how.grammar.encode(), b"root")
            if not grammar:
                raise Refused("Failed to parse grammar")
            added.append(grammar)
        if (how.repeat_penalty, how.frequency_penalty, how.presence_penalty) != (1.0, 0.0, 0.0):
            bounds = (how.repeat_penalty, how.frequency_penalty, how.presence_penalty)
            added.append(b.llama_sampler_init_penalties(self.n_vocab, _PENALTY_TOKENS, *bounds))
        if how.temperature <= 0:
            added.append(b.llama_sampler_init_greedy())
        else:
            added.append(b.llama_sampler_init_top_k(how.top_k))
            added.append(b.llama_sampler_init_top_p(how.top_p, 1))
            added.append(b.llama_sampler_init_min_p(how.min_p, 1))
            added.append(b.llama_sampler_init_temp(how.temperature))
            added.append(b.llama_sampler_init_dist(how.seed))
        chain = b.llama_sampler_chain_init(b.llama_sampler_chain_default_params())
        for each in added:
            b.llama_sampler_chain_add(chain, each)
        return Sampler(
            lambda: int(b.llama_sampler_sample(chain, self._context, -1)),
            lambda: b.llama_sampler_free(chain),
        )

    def _all_ends(self) -> Any:
        if self._ends is None:
            kind = self._b.llama_logit_bias
            ends = [kind(t, -math.inf) for t in range(self.n_vocab) if self.is_end(t)]
            self._ends = (kind * len(ends))(*ends)
        return self._ends

    # Vectors

    def vector(self, tokens: Sequence[int]) -> list[float]:
        """The vector of a text, of length 1.

        Raises:
            Refused: the text is too long, or the model gives a vector for each token only.
        """
        pooling = self._b.llama_pooling_type(self._context)
        if pooling == _NO_POOLING:
            raise Refused("Pooling type 'none' is not OAI compatible")
        most = self.n_ctx if pooling == _LAST_POOLING else self.n_batch
        if len(tokens) > most:
            raise Refused(
                f"input ({len(tokens)} tokens) is too large to process; it may have {most}",
                "exceed_context_size_error",
                n_prompt_tokens=len(tokens),
                n_ctx=most,
            )
        self.forget()
        for piece in pieces(tokens, self.n_batch):
            self.evaluate(piece)
        size = self._b.llama_model_n_embd_out(self._model)
        found = list(self._b.llama_get_embeddings_seq(self._context, 0)[:size])
        length = math.sqrt(math.fsum(x * x for x in found)) or 1.0
        return [x / length for x in found]


@dataclass(frozen=True)
class Sampler:
    """Chooses the next token, by the last evaluation. `close` frees it."""

    next: Callable[[], int]
    close: Callable[[], None]


def pieces(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The tokens in parts of at most `size`."""
    for at in range(0, len(tokens), size):
        yield tokens[at : at + size]
