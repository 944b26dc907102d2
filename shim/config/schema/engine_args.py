"""Which llama-server arguments a configuration may add, and which keepwarm decides itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import PlainValidator

from shim.config.schema.values import TEXTS, TEXTS_JSON

_OWN = "keepwarm decides it"
_BOOKED = "keepwarm books its bytes and decides it"
_PLACED = "keepwarm decides the placement; use n_gpu_layers and [budget] device"
_FETCHED = "engines never download; use path or hf"

_BY_REASON: Mapping[str, str] = {
    "use path": "-m --model",
    "use context": "-c --ctx-size",
    "use slots": "-np --parallel",
    "use n_gpu_layers": "-ngl --gpu-layers --n-gpu-layers",
    "use kv_type or kv_type_k": "-ctk --cache-type-k",
    "use kv_type or kv_type_v": "-ctv --cache-type-v",
    "use flash_attention": "-fa --flash-attn",
    "use n_batch": "-b --batch-size",
    "use n_ubatch": "-ub --ubatch-size",
    "use repack": "--repack -nr --no-repack",
    "use threads": "-t --threads -tb --threads-batch",
    "use mmproj": "-mm --mmproj",
    "use draft_model": "-md --model-draft --spec-draft-model",
    "use lora": "--lora --lora-scaled",
    'use role = "embedder"': "--embedding --embeddings",
    "use api_key_env on a remote model": "--api-key --api-key-file",
    _FETCHED: "-mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token "
    "-mmu --mmproj-url -hfd -hfrd --hf-repo-draft --spec-draft-hf --embd-gemma-default "
    "--fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec "
    "--fim-qwen-14b-spec --fim-qwen-30b-default --gpt-oss-20b-default --gpt-oss-120b-default "
    "--vision-gemma-4b-default --vision-gemma-12b-default --mmproj-auto --no-mmproj --no-mmproj-auto",
    _PLACED: "-fit --fit -fitt --fit-target -fitc --fit-ctx -dev --device -sm --split-mode "
    "-ts --tensor-split -mg --main-gpu -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe "
    "-ncffn --n-cpu-ffn --rpc -ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl "
    "-devd --device-draft --spec-draft-device -mmdev --mmproj-device -kvo --kv-offload -nkvo "
    "--no-kv-offload --mmproj-offload --no-mmproj-offload -otd --override-tensor-draft "
    "--spec-draft-override-tensor -cmoed --cpu-moe-draft --spec-draft-cpu-moe -ncmoed "
    "--n-cpu-moe-draft --spec-draft-ncmoe --spec-draft-n-cpu-moe",
    "its bytes are not booked": "-lcs --lookup-cache-static -lcd --lookup-cache-dynamic",
    _BOOKED: "-cram --cache-ram -ctxcp --ctx-checkpoints --swa-checkpoints -lm --load-mode "
    "-lzm --lazy-mode -kvu --kv-unified -no-kvu --no-kv-unified --kv-unified-per-slot --swa-full "
    "--no-host --cache-idle-slots --no-cache-idle-slots",
    _OWN: "--host --port --reuse-port --api-prefix --ssl-key-file --ssl-cert-file -a --alias "
    "--models-dir --models-preset --models-max --models-autoload --no-models-autoload "
    "--slot-save-path --log-file --log-disable --log-jsonl --no-log-jsonl --log-colors -v --verbose "
    "--log-verbose -lv --verbosity --log-verbosity --log-prompts-dir --warmup --no-warmup "
    "--sleep-idle-seconds -cl --cache-list --completion-bash --list-devices -h --help --usage "
    "--version --offline -to --timeout "
    "--tools --mcp-servers-config --mcp-servers-json -ag --agent --slots --no-slots",
}

REFUSED: Mapping[str, str] = {
    name: reason for reason, names in _BY_REASON.items() for name in names.split()
}
"""Argument -> the key to use instead, or why no key exists."""

_HARMLESS = (
    "-n --predict --n-predict --keep -e --escape --no-escape --perf --no-perf --check-tensors",
    "--op-offload --no-op-offload -dt --defrag-thold --numa -C --cpu-mask -Cr --cpu-range",
    "--cpu-strict --poll -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch",
    "--poll-batch --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale",
    "--yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast",
    "--samplers -s --seed --sampler-seq --sampling-seq --ignore-eos --temp --temperature",
    "--top-k --top-p --min-p --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold",
    "--typical --typical-p --repeat-last-n --repeat-penalty --presence-penalty",
    "--frequency-penalty --dry-multiplier --dry-base --dry-allowed-length",
    "--dry-penalty-last-n --dry-sequence-breaker --adaptive-target --adaptive-decay",
    "--dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent -l --logit-bias",
    "-bs --backend-sampling --spec-default --spec-type --spec-draft-n-max --spec-draft-n-min",
    "--spec-draft-p-split --draft-p-split --spec-draft-p-min --draft-p-min",
    "--spec-ngram-mod-n-min --spec-ngram-mod-n-max --spec-ngram-mod-n-match",
    "--spec-ngram-simple-size-n --spec-ngram-simple-size-m --spec-ngram-simple-min-hits",
    "--spec-ngram-map-k-size-n --spec-ngram-map-k-size-m --spec-ngram-map-k-min-hits",
    "--spec-ngram-map-k4v-size-n --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-min-hits",
    "--context-shift --no-context-shift -sp --special --spm-infill --pooling -cb",
    "--cont-batching -nocb --no-cont-batching --embd-normalize --rerank --reranking",
    "--threads-http --sse-ping-interval --cache-prompt --no-cache-prompt --cache-reuse -cms",
    "--checkpoint-min-step --jinja --no-jinja --chat-template-kwargs --reasoning-format -rea",
    "--reasoning --reasoning-effort --reasoning-budget --reasoning-budget-message",
    "--reasoning-preserve --no-reasoning-preserve --skip-chat-parsing --no-skip-chat-parsing",
    "--prefill-assistant --no-prefill-assistant -sps --slot-prompt-similarity",
    "--image-min-tokens --image-max-tokens --log-prefix --no-log-prefix --log-timestamps",
    "--no-log-timestamps --ui --no-ui --webui --no-webui --metrics --tags",
)
HARMLESS = frozenset(name for names in _HARMLESS for name in names.split())
"""Arguments that take numbers and words only; none of them reads, writes or runs a file."""

_OPTION = re.compile(r"--?[A-Za-z][\w.-]*", re.ASCII)


def option_name(argument: str) -> str | None:
    """The option an argument names, as llama-server reads it; None for a value such as "-1"."""
    name = argument.partition("=")[0]
    if not _OPTION.fullmatch(name):
        return None
    return name.replace("_", "-") if name.startswith("--") else name


def risky_options(arguments: Iterable[str]) -> list[str]:
    """The options among some arguments that may read, write or run a file that they name."""
    names = (option_name(argument) for argument in arguments)
    return [name for name in names if name is not None and name not in HARMLESS]


def parse_engine_args(value: object) -> tuple[str, ...]:
    """The arguments as a tuple; the `ValueError` otherwise lists each refused one."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of texts")
    if any("\0" in item for item in value):
        raise ValueError("an argument holds a NUL byte")
    named = [(item, option_name(item)) for item in value]
    refused = [
        f"{item} is refused ({REFUSED[name]})" for item, name in named if name and name in REFUSED
    ]
    if refused:
        raise ValueError("; ".join(refused))
    if named and named[0][1] is None:
        raise ValueError(f'the first argument "{value[0]}" is not an option')
    return tuple(value)


ExtraArgs = Annotated[tuple[str, ...], PlainValidator(parse_engine_args), TEXTS, TEXTS_JSON]
