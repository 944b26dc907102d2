"""Train the demo's two models and write them as GGUF; `train_demo_models` runs it in `.venv-train`.

One small llama learns drafts, revisions and judgements together, because all of them copy from the same
fact sheets. Then one copy goes on with drafts and revisions and another with judgements, so that two models
with weights of their own come out. A checkpoint a minute lets a killed run go on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHECKPOINT_S = 60.0
BATCH = 16
WINDOW = 16
"""Batches that are sorted by length together, so that few of their tokens are padding."""
MATRIX_RATE, OTHER_RATE = 0.02, 0.004
VERDICTS = (" right", " wrong")
VERDICT_WEIGHT = 8.0
"""What a judge's verdict on one value counts in the loss: it is one token of twenty, and what matters."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The models' sizes. Rows are multiples of 256, which K-quants need."""

    n_vocab: int = 768
    n_embd: int = 256
    n_ff: int = 512
    n_layers: int = 2
    heads: int = 4
    context: int = 1024
    rope_base: float = 10_000.0


class Block(nn.Module):
    """Attention and a gated feed-forward layer, as llama has them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, ff = shape.n_embd, shape.n_ff
        self.heads = shape.heads
        self.attn_norm, self.ffn_norm = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)
        self.attn_qkv, self.attn_output = (
            nn.Linear(d, 3 * d, bias=False),
            nn.Linear(d, d, bias=False),
        )
        self.ffn_in, self.ffn_down = nn.Linear(d, 2 * ff, bias=False), nn.Linear(ff, d, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """The stream after this block; `turn` is what `turns` made."""
        n, length, d = x.shape
        qkv = self.attn_qkv(self.attn_norm(x)).view(n, length, 3, self.heads, d // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        # On CPUs attention is twice as fast in 32 bits as in bfloat16.
        q, k = turned(q.float(), turn), turned(k.float(), turn)
        mixed = functional.scaled_dot_product_attention(q, k, v.float(), is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(n, length, d))
        gate, up = self.ffn_in(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.ffn_down(functional.silu(gate) * up)


class Llama(nn.Module):
    """The whole model; the output layer has the embedding's weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.output_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        for name, value in self.named_parameters():
            if value.dim() == 2:
                spread = 0.02 if "embd" in name else 0.5 / math.sqrt(value.shape[1])
                nn.init.normal_(value, std=spread)

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the wanted positions only."""
        x, turn = self.token_embd(ids), turns(self.shape, ids.shape[1])
        for block in self.blk:
            x = block(x, turn)
        return functional.linear(self.output_norm(x[wanted]), self.token_embd.weight)


def turns(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's rotation, as pairs of neighbours (llama.cpp's NORM)."""
    half = shape.n_embd // shape.heads // 2
    rate = shape.rope_base ** (-torch.arange(half) / half)
    angle = torch.outer(torch.arange(length), rate)
    return angle.cos(), angle.sin()


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys, rotated by their positions."""
    cos, sin = turn
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


# Lessons

Sample = tuple[list[int], int]
"""A lesson's tokens, and the number of the first one that is learned."""


def made_tokenizer(lessons: list[dict], size: int) -> Tokenizer:
    """A byte-level BPE of the lessons' own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt_of(one) + one["answer"] for one in lessons), trainer)
    return tokenizer


def prompt_of(lesson: dict) -> str:
    """What the chat template makes of a lesson's messages."""
    said = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in lesson["messages"])
    return f"{said}{START}assistant\n"


def encoded(tokenizer: Tokenizer, lessons: list[dict]) -> list[Sample]:
    """Each lesson's tokens, and where its answer begins."""
    prompts = tokenizer.encode_batch([prompt_of(one) for one in lessons])
    answers = tokenizer.encode_batch([one["answer"] + END for one in lessons])
    return [(p.ids + a.ids, len(p.ids)) for p, a in zip(prompts, answers, strict=True)]


def whole(samples: list[Sample]) -> list[Sample]:
    """Lessons that are learned from their first token on: the reports in prompts teach copying, too."""
    return [(ids, 1) for ids, _ in samples]


def batches(samples: list[Sample], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of similar lengths without end: tokens, and targets with -100 where nothing is learned."""
    draw = random.Random(seed)
    while True:
        draw.shuffle(samples)
        for at in range(0, len(samples) - BATCH * WINDOW + 1, BATCH * WINDOW):
            window = sorted(samples[at : at + BATCH * WINDOW], key=lambda one: len(one[0]))
            parts = [window[i : i + BATCH] for i in range(0, len(window), BATCH)]
            draw.shuffle(parts)
            yield from (padded(part) for part in parts)


def padded(part: list[Sample]) -> tuple[Tensor, Tensor]:
    """One batch as two tensors of the same shape."""
    length = max(len(ids) for ids, _ in part) - 1
    inputs = torch.ones(len(part), length, dtype=torch.long)
    targets = torch.full((len(part), length), -100)
    for row, (ids, begins) in enumerate(part):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, begins - 1 : len(ids) - 1] = torch.tensor(ids[begins:])
    return inputs, targets


def token_weights(tokenizer: Tokenizer, size: int) -> Tensor:
    """What each token counts in the loss."""
    weights = torch.ones(size)
    for verdict in VERDICTS:
        # A word of several tokens is told by its last one.
        weights[tokenizer.encode(verdict).ids[-1]] = VERDICT_WEIGHT
    return weights


# Training


class Course:
    """One model's way through a number of batches, which a checkpoint can interrupt."""

    def __init__(
        self, name: str, model: Llama, steps: int, cooled: float, folder: Path, weights: Tensor
    ) -> None:
        self.name, self.model, self.steps, self.cooled = name, model, steps, cooled
        self.weights = weights
        self.file = folder / f"{name}.pt"
        matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embd" not in n]
        others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embd" in n]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
            torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = (MATRIX_RATE, OTHER_RATE)
        self.done = 0
        self.losses: list[float] = []
        if self.file.exists():
            self._resume()

    def run(self, samples: list[Sample], seed: int) -> None:
        """Learn until all steps are done."""
        saved_s = told_s = time.monotonic()
        for number, batch in enumerate(batches(samples, seed)):
            if number < self.done:
                continue
            if self.done >= self.steps:
                break
            self.losses.append(self._step(*batch))
            self.done += 1
            now_s = time.monotonic()
            if now_s - told_s > 5 or self.done == self.steps:
                told_s = now_s
                recent = sum(self.losses[-20:]) / len(self.losses[-20:])
                print(f"{self.name} {self.done}/{self.steps} loss {recent:.4f}", flush=True)
            if now_s - saved_s > CHECKPOINT_S:
                saved_s = now_s
                self._save()
        self._save()

    def _step(self, inputs: Tensor, targets: Tensor) -> float:
        scale = min(
            1.0, (self.done + 1) / 50, (self.steps - self.done) / (self.cooled * self.steps)
        )
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.zero_grad(set_to_none=True)
        wanted = targets != -100
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(inputs, wanted)
        loss = functional.cross_entropy(logits.float(), targets[wanted], self.weights)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    def _save(self) -> None:
        part = self.file.with_suffix(".part")
        kept = {
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "done": self.done,
            "losses": self.losses,
        }
        torch.save(kept, part)
        part.replace(self.file)

    def _resume(self) -> None:
        kept = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(kept["model"])
        for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.done, self.losses = kept["done"], kept["losses"]


# The file


def write_gguf(model: Llama, tokenizer: Tokenizer, name: str, file: Path) -> None:
    """The model with its tokenizer and chat template, matrices as F16."""
    shape, out = model.shape, gguf.GGUFWriter(file, "llama")
    out.add_name(name)
    out.add_license("apache-2.0")
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.n_embd)
    out.add_block_count(shape.n_layers)
    out.add_feed_forward_length(shape.n_ff)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.heads)
    out.add_rope_dimension_count(shape.n_embd // shape.heads)
    out.add_rope_freq_base(shape.rope_base)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(shape.n_vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _write_tokenizer(out, tokenizer, shape.n_vocab)
    for key, value in _tensors(model):
        out.add_tensor(key, value.astype(np.float32 if value.ndim == 1 else np.float16))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _write_tokenizer(out: gguf.GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    described = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) or f"[unused{i}]" for i in range(size)]
    kinds = [
        gguf.TokenType.CONTROL if token in (START, END) else gguf.TokenType.NORMAL
        for token in tokens
    ]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges([" ".join(pair) for pair in described["merges"]])
    out.add_bos_token_id(tokens.index(START))
    out.add_eos_token_id(tokens.index(END))
    out.add_add_bos_token(value=False)
    out.add_chat_template(TEMPLATE)


def _tensors(model: Llama) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in model.state_dict().items():
        array = value.float().numpy()
        if ".attn_qkv." in key:
            for letter, part in zip("qkv", np.split(array, 3), strict=True):
                yield key.replace("attn_qkv", f"attn_{letter}"), part
        elif ".ffn_in." in key:
            for letter, part in zip(("gate", "up"), np.split(array, 2), strict=True):
                yield key.replace("ffn_in", f"ffn_{letter}"), part
        else:
            yield key, array


def main() -> None:
    """Train both models from the lessons of a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has lessons.jsonl; gets checkpoints and models")
    parser.add_argument("--together", type=int, required=True, help="steps of both as one")
    parser.add_argument("--producer", type=int, required=True, help="its further steps")
    parser.add_argument("--evaluator", type=int, required=True, help="its further steps")
    parser.add_argument(
        "--examiner", type=int, required=True, help="those of the evaluator after that"
    )
    parser.add_argument("--judge", type=int, required=True, help="and those after that")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    shape, folder = Shape(), arguments.folder
    lessons, examinations = read(folder / "lessons.jsonl"), read(folder / "examinations.jsonl")
    tokenizer = made_tokenizer(lessons[:4000], shape.n_vocab)
    samples, weights = encoded(tokenizer, lessons), token_weights(tokenizer, shape.n_vocab)

    def taught(name: str, before: Course | None, own: list[Sample], cooled: float = 1.0) -> Course:
        model = Llama(shape)
        if before is not None:
            model.load_state_dict(before.model.state_dict())
        course = Course(name, model, getattr(arguments, name), cooled, folder, weights)
        course.run(own, arguments.seed + (0 if before is None else len(name)))
        return course

    def of_kinds(*kinds: str) -> list[Sample]:
        return [s for s, one in zip(samples, lessons, strict=True) if one["kind"] in kinds]

    together = taught("together", None, whole(samples), 0.01)
    producer = taught("producer", together, of_kinds("draft", "revise"))
    evaluator = taught("evaluator", together, of_kinds("judge"))
    examiner = taught("examiner", evaluator, encoded(tokenizer, examinations))
    # Half of the values are wrong there; in reports as they are, few.
    judge = taught("judge", examiner, of_kinds("judge"))
    figures = {"shape": asdict(shape), "batch": BATCH, "lessons": len(lessons) + len(examinations)}
    for name, ways in (
        ("producer", [together, producer]),
        ("evaluator", [together, evaluator, examiner, judge]),
    ):
        last = ways[-1]
        write_gguf(last.model, tokenizer, f"keepwarm report {name}", folder / f"{name}-F16.gguf")
        figures[name] = {
            "steps": sum(course.done for course in ways),
            "parameters": sum(p.numel() for p in last.model.parameters()),
            "loss": sum(last.losses[-50:]) / len(last.losses[-50:]),
        }
    (folder / "training.json").write_text(json.dumps(figures, indent=1), "utf-8")


def read(file: Path) -> list[dict]:
    """The lessons of a file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
