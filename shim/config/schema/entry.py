"""One model of a configuration, and the combinations of keys that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from backends.kinds import LLAMA, Backend
from backends.python.ready_made import READY_MADE
from shim.config.schema.device_values import Device
from shim.config.schema.endpoint_values import Endpoints, first_url
from shim.config.schema.engine_args import ExtraArgs
from shim.config.schema.kind_keys import DEFAULT_CONTEXT, allowed_kinds, conflicts, keys_of, kind_of
from shim.config.schema.sections import OFF, ON, SECONDS_ALLOWED, TIMEOUT_ALLOWED, Section, key
from shim.config.schema.server_values import ABILITIES, Abilities, Command, RequestPath, StopSignal
from shim.config.schema.values import (
    FOREVER,
    Context,
    EnvName,
    FilePath,
    FilePaths,
    GpuLayers,
    HfFile,
    Seconds,
    Slots,
    Timeout,
    Url,
)
from shim.config.schema.worker_values import (
    AMOUNT_OF_BYTES,
    DeclaredBytes,
    Environment,
    Factory,
    Interpreter,
    Options,
)

Role = Literal["producer", "evaluator", "planner", "embedder", "reranker"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
KV_ALLOWED = '"f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0" or "iq4_nl"'
PATH_ALLOWED = "a path; a relative one starts at this file's folder, ~ is your home"

PLANNER_STAYS_S: Final = 60.0
"""A planner is asked at the start of a run; its bytes are better used by those that carry the plan out."""


class ModelEntry(Section):
    """A model that callers name: a GGUF file run here, or a remote endpoint."""

    path: FilePath | None = key(
        None,
        "The GGUF file (its first shard); for vLLM a model folder in Hugging Face form.",
        PATH_ALLOWED,
    )
    hf: HfFile | None = key(
        None,
        "A file on the Hugging Face Hub, downloaded on `keepwarm load` or first use.",
        '"owner/repo:file.gguf" or "owner/repo@revision:file.gguf"',
    )
    role: Role | None = key(
        None,
        "What the model is for. A producer may be as coarse as you like (`keepwarm recommend --role "
        "producer` advises Q4_K_M); an evaluator "
        "needs Q8_0 or better by its tensors and is pinned; a planner leaves 60 seconds after its last "
        "request; an embedder needs a file that pools a text to a vector (mean, cls or last), a reranker "
        "one that pools to a score (rank).",
        '"producer", "evaluator", "planner", "embedder" or "reranker"',
    )
    context: Context = key(
        DEFAULT_CONTEXT,
        "Tokens of KV cache of all slots together (llama.cpp's n_ctx); a request can use "
        "context / slots. With a range the planner takes less before it splits the model. Left out: at "
        "most what the model was trained for, times slots.",
        "a whole number of tokens, 1 or more, or { min = 4096, preferred = 16384 }",
    )
    slots: Slots = key(
        1,
        "Requests served at the same time; a range as for `context`.",
        "a whole number from 1 to 256, or { min = 1, preferred = 4 }",
    )
    kv_type: KvType = key("f16", "Type of the KV cache.", KV_ALLOWED)
    kv_type_k: KvType | None = key(
        None, "Type of the keys, where it differs from `kv_type`.", KV_ALLOWED
    )
    kv_type_v: KvType | None = key(
        None, "Type of the values, where it differs from `kv_type`.", KV_ALLOWED
    )
    n_gpu_layers: GpuLayers = key(
        "auto", "Layers on the GPU; `auto` leaves it to the planner.", '"auto" or 0 or more'
    )
    flash_attention: Literal["on", "off", "auto"] = key(
        "auto", "Flash attention; a quantized `kv_type_v` needs it.", '"on", "off" or "auto"'
    )
    n_batch: int = key(2048, "Tokens of a logical batch.", "1 or more", ge=1, le=2**20)
    n_ubatch: int = key(
        512,
        "Tokens of a physical batch. Left out: an embedder's holds the context of a slot (`n_batch` grows "
        "with it where that is left out, too), because it embeds no longer text. Its rows of output take "
        "at most 1 GiB then: with a vocabulary of 250,000 words it holds 1,024 tokens.",
        "1 or more, at most n_batch",
        ge=1,
        le=2**20,
    )
    repack: bool = key(
        ON,
        "Store weights in the layout that this CPU multiplies fastest. Repacked kernels round "
        "differently: `false` on every side makes answers of Q4 files equal over all splits.",
        "true or false",
    )
    swa_full: bool = key(
        OFF,
        "Keep the whole context of sliding-window layers: more KV cache (it is booked), and KV state "
        "that can be carried over a swap.",
        "true or false",
    )
    threads: int | None = key(
        None,
        "CPU threads of the engine; left out: all cores. Without a GPU, one less leaves a core "
        "to loads ahead.",
        "1 or more",
        ge=1,
        le=4096,
    )
    keep_alive: Timeout = key(
        FOREVER,
        "How long the model stays after its last request; 0 leaves at once. Not a rank, not a pin. Left "
        "out: 60 seconds for a planner that is not pinned.",
        TIMEOUT_ALLOWED,
    )
    pin: bool | None = key(
        None, "Eviction never touches it; left out: true for evaluators.", "true or false"
    )
    priority: int = key(
        0, "Higher is served first.", "a whole number from -100 to 100", ge=-100, le=100
    )
    max_queue: int | None = key(
        None,
        "Requests that may wait for this model; left out: [budget] max_queue_per_model.",
        "a whole number, 0 or more",
        ge=0,
    )
    connect_timeout: Seconds | None = key(
        None,
        "How long one attempt to connect to the endpoint may take. Left out: 5 seconds.",
        SECONDS_ALLOWED,
    )
    first_token_timeout: Seconds | None = key(
        None,
        "How long a streamed answer may take to its first token, or since llama.cpp last said that it "
        "got on with the prompt. Left out: 10 minutes at an endpoint; an engine here as long as it gets "
        "on ([keeper] stall_timeout).",
        SECONDS_ALLOWED,
    )
    token_timeout: Seconds | None = key(
        None,
        "How long a streamed answer may take from one token to the next. Left out: 2 minutes at an "
        "endpoint; an engine here as long as it gets on.",
        SECONDS_ALLOWED,
    )
    answer_timeout: Seconds | None = key(
        None,
        "How long an answer may take in all, once its request was sent. Left out: 30 minutes for one in "
        "one piece at an endpoint, else 6 hours.",
        SECONDS_ALLOWED,
    )
    mmproj: FilePath | None = key(None, "Projector file of a multimodal model.", PATH_ALLOWED)
    draft_model: FilePath | None = key(
        None, "GGUF file of a draft model for speculative decoding.", PATH_ALLOWED
    )
    lora: FilePaths = key((), "LoRA adapters.", f"one path or a list of paths; {PATH_ALLOWED}")
    warm_prompt: str | None = key(
        None,
        "A text (an evaluator's rubric) that is evaluated once and kept with the model.",
        "a text that is not empty",
        min_length=1,
    )
    engine_args: ExtraArgs = key(
        (),
        "Further llama-server arguments; those that keepwarm decides, and those that the installed "
        "llama-server refuses, are refused by name. YaRN with a scale, and `--override-kv "
        "ARCH.context_length=int:N`, raise the context that a model may have. Bytes of `--spec-type` and "
        "control vectors are booked.",
        'a list of texts, such as ["--rope-scaling", "yarn", "--rope-scale", "4"]',
        trust="program",
    )
    llama_server: FilePath | None = key(
        None,
        "Another llama-server for this model. Flags that it does not know are left out where it does the "
        "same without them, else it is refused by the flag. Left out: the one of $KEEPWARM_LLAMA_BIN, the "
        "one that is installed with keepwarm, or the one on PATH.",
        PATH_ALLOWED,
        trust="run",
    )
    factory: Factory | None = key(
        None,
        'Your own Python code (`backend = "python"`): the class, or the function, that makes the model. '
        "Its result is called. The module lies in `cwd` or on the interpreter's path. A name without a "
        "colon is a factory that comes with keepwarm.",
        f'"module:Name", or one of {", ".join(READY_MADE)}',
        trust="run",
    )
    options: Options = key({}, "The factory's arguments.", "a table of JSON values")
    bytes: DeclaredBytes | None = key(
        None,
        "What it takes of its device, where that is known. It is measured after its load and its first "
        "call, and more is booked and learned. Left out: the sizes of `files`, or 1 GiB, until measured.",
        AMOUNT_OF_BYTES,
    )
    files: FilePaths = key(
        (),
        "The files and folders that it loads: they are staged ahead, and a change makes it load again.",
        f"one path or a list of paths; {PATH_ALLOWED}",
    )
    python: Interpreter | None = key(
        None,
        "The interpreter of its environment, with Python 3.9 or newer. It needs nothing of keepwarm, and "
        "numpy only to send arrays. Left out: keepwarm's own.",
        "the path of a python program",
        trust="run",
    )
    cwd: FilePath | None = key(
        None, "Its working folder. Left out: the folder of this file.", PATH_ALLOWED
    )
    env: Environment = key(
        {}, "Environment variables of its process.", "a table of texts", trust="run"
    )
    device: Device = key(
        "auto",
        "Where it computes; `auto` takes a budgeted GPU, or the host without one. It sees no other GPU.",
        '"auto", "host" or "cuda:N" (N counts from 0)',
    )
    sleep: Literal[0, 1, 2] = key(
        0,
        "How a vLLM server leaves its GPU: 0 ends it; 1 keeps its weights in the host's memory, booked "
        "there; 2 keeps its processes only, and reads its weights anew.",
        "0, 1 or 2",
    )
    command: Command | None = key(
        None,
        'A program that answers over HTTP (`backend = "server"`), and its arguments. keepwarm puts what it '
        "chooses in the place of names in braces: `{port}` of the loopback or `{socket}` (one of the two), "
        "`{key_file}` (the file of its API key), `{model}` (the first of `files`), `{name}` (that in its "
        "requests). In `env` also `{key}`.",
        'a list of texts, such as ["whisper-server", "--port", "{port}", "-m", "{model}"]',
        trust="run",
    )
    ready: RequestPath | None = key(
        None,
        "The path that a server answers with 2xx once it is ready. Left out: it is ready when it listens.",
        'a path such as "/health"',
    )
    can: Abilities = key(
        (),
        "What a server does of OpenAI's API (its own paths are reached by `Shim.http`), or what a Python "
        "model does beside being called: `rerank`, `transcribe`, `speak`, `tokenize`. The factories that "
        "come with keepwarm know theirs.",
        f"a list of {', '.join(ABILITIES)}",
    )
    stop_signal: StopSignal | None = key(
        None,
        "The signal that asks a server to end, for which it then has 5 seconds. Left out: it is killed, "
        "which gives its bytes back soonest.",
        '"TERM", "INT", "QUIT", "HUP", "USR1" or "USR2"',
    )
    backend: Backend = key(
        "llama.cpp",
        "What runs it. Left out: openai with `url`, python with `factory`, server with `command`.",
        allowed_kinds(),
    )
    endpoints: Endpoints = key(
        (),
        "Several endpoints of one model, in place of `url`: tables of `url`, and of `weight` (its share of "
        "the requests), `concurrency` (how many it gets at once) and `model_id` where they differ. A "
        "request that failed before its first token goes to another one.",
        'a list such as [{ url = "http://a:8000", weight = 2 }, { url = "http://b:8000" }]',
        trust="address",
    )
    fallback: str | None = key(
        None,
        "The model that takes over a request when this one is denied, times out, cannot be reached, or its "
        "engine died three times in ten minutes. Nothing of an answer may have been delivered.",
        "the name of another model",
        min_length=1,
    )
    url: Url | None = key(
        None,
        "Address of a remote endpoint, with or without /v1.",
        "http(s)://host[:port][/path] without user, password or query",
        trust="address",
    )
    model_id: str | None = key(
        None,
        "The model's name at the endpoint; left out: the name used here.",
        "a text that is not empty",
        min_length=1,
    )
    api_key_env: EnvName | None = key(
        None,
        "The environment variable that holds the endpoint's key; never the key itself.",
        "a name of an environment variable",
        trust="secret",
    )
    ca_file: FilePath | None = key(
        None,
        "Certificates (PEM) of authorities that count for this endpoint beside the usual ones.",
        PATH_ALLOWED,
    )

    @model_validator(mode="before")
    @classmethod
    def _infer_kind(cls, data: object, info: ValidationInfo) -> object:
        if not isinstance(data, dict):
            return data
        kind = kind_of(data)
        added: dict[str, object] = {} if kind == "llama.cpp" else {"backend": kind}
        if first := first_url(data):
            added["url"] = first
        if kind in ("python", "server"):
            # Here, because the keeper that gets the configuration does not know the file's folder.
            added["cwd"] = (info.context or {}).get("base") or Path.cwd()
        return {**added, **data}

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if any(conflicts({name: getattr(self, name) for name in self.model_fields_set})):
            raise PydanticCustomError("conflicts", "keys that contradict each other")
        return self

    @property
    def remote(self) -> bool:
        """Whether requests go to an endpoint that keepwarm does not run."""
        return self.url is not None

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp runs it here, from a GGUF file."""
        return self.backend in LLAMA and self.url is None

    @property
    def pinned(self) -> bool:
        """Whether the model may not be evicted; by default an evaluator may not."""
        if self.pin is None:
            return self.role == "evaluator" and not self.remote
        return self.pin

    @property
    def stays_s(self) -> float:
        """Seconds that the model stays after its last request; a planner not for good by default."""
        if self.role == "planner" and not self.pin and "keep_alive" not in self.model_fields_set:
            return PLANNER_STAYS_S
        return float(self.keep_alive)

    @property
    def kv_types(self) -> tuple[str, str]:
        """The types of the keys and of the values."""
        return self.kv_type_k or self.kv_type, self.kv_type_v or self.kv_type

    def relevant_keys(self) -> frozenset[str]:
        """The keys that apply to this model, by what runs it."""
        return keys_of(self.backend, remote=self.remote)

    @property
    def context_per_slot(self) -> int:
        """Tokens that one request can use."""
        return self.context // self.slots
