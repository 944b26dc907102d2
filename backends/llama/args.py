"""A placement as the exact command line of llama-server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.llama.rpc.device_names import names_of, servers_of
from budget.errors import ConfigError
from budget.footprint import EngineArgs
from budget.memory.further.speculation import draft_kinds

LOG_VERBOSITY = 4
"""llama-server's `-lv`: the lowest level that prints the `buffer size` lines (3 does not, 5 is a
line per token and slows them)."""


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """Settings of an engine's start beside its placement; none of them changes the bytes.

    `threads` is the number of CPU threads for tokens, `threads_batch` for prompts.
    """

    model_path: Path
    model_id: str
    socket_path: Path
    slot_folder: Path
    threads: int
    threads_batch: int
    pooling: str | None = None


def server_argv(binary: Path, args: EngineArgs, settings: LaunchSettings) -> list[str]:
    """The argv of llama-server for exactly these arguments.

    Every cache that can grow is off (`--cache-ram 0`, no context checkpoints, no idle-slot cache),
    nothing is fitted or guessed by llama-server, and weights are read, not mapped, unless
    `use_mmap` says otherwise: mapped and repacked weights would be held twice.

    Raises:
        ConfigError: an argument that cannot be honoured.
    """
    _check(args, settings)
    argv = [str(binary), "--model", str(settings.model_path), "--alias", settings.model_id]
    argv += ["--host", str(settings.socket_path), "--slot-save-path", str(settings.slot_folder)]
    argv += ["--fit", "off", "--no-warmup", "--no-ui", "--offline", "--jinja", "--slots"]
    # A ping would look like a token to the time-out between tokens.
    argv += ["--sse-ping-interval", "-1"]
    argv += ["--cache-ram", "0", "--ctx-checkpoints", "0", "--no-cache-idle-slots"]
    argv += ["--verbosity", str(LOG_VERBOSITY)]
    argv += ["--threads", str(settings.threads), "--threads-batch", str(settings.threads_batch)]
    argv += _memory_args(args)
    argv += _companion_args(args)
    if args.embeddings:
        argv.append("--embeddings")
        if settings.pooling is not None:
            argv += ["--pooling", settings.pooling]
    argv += args.extra
    return argv


def _memory_args(args: EngineArgs) -> list[str]:
    argv = ["--ctx-size", str(args.n_ctx), "--parallel", str(args.slots)]
    argv += ["--kv-unified" if args.kv_unified else "--no-kv-unified"]
    argv += ["--cache-type-k", args.kv_type_k, "--cache-type-v", args.kv_type_v]
    argv += ["--flash-attn", args.flash_attention]
    argv += ["--batch-size", str(args.n_batch), "--ubatch-size", str(args.n_ubatch)]
    argv += ["--n-gpu-layers", str(args.n_gpu_layers)]
    argv += ["--load-mode", "mmap" if args.use_mmap else "none"]
    argv += ["--repack" if args.repack else "--no-repack"]
    if args.swa_full:
        argv.append("--swa-full")
    return argv


def _companion_args(args: EngineArgs) -> list[str]:
    argv: list[str] = []
    if args.mmproj is None:
        argv.append("--no-mmproj")
    else:
        argv += ["--mmproj", args.mmproj]
        if args.devices and not args.layer_devices:
            # A model on the CPU keeps its projector there: that is where it is booked.
            argv.append("--no-mmproj-offload")
    if args.draft_model is not None:
        argv += ["--spec-draft-model", args.draft_model]
        if "draft-simple" in draft_kinds(args) and "draft-simple" not in ",".join(args.extra):
            # llama-server loads a draft model without it, and does not use it.
            argv += ["--spec-type", "draft-simple"]
    if args.lora:
        argv += ["--lora", ",".join(args.lora)]
    argv += _device_args(args)
    return argv


def _device_args(args: EngineArgs) -> list[str]:
    argv: list[str] = []
    if servers := servers_of(args.rpc):
        argv += ["--rpc", ",".join(servers)]
    if args.devices:
        argv += ["--device", ",".join(names_of(args).llama(args.devices))]
    if args.tensor_split:
        argv += ["--split-mode", "layer"]
        argv += ["--tensor-split", ",".join(str(layers) for layers in args.tensor_split)]
    return argv


def _check(args: EngineArgs, settings: LaunchSettings) -> None:
    for path in (*args.lora, str(settings.socket_path)):
        if "," in path:
            raise ConfigError(
                f"{path!r} holds a comma, which llama-server reads as a list.",
                hint="Rename the file or folder.",
            )
    if args.slots < 1 or args.n_ctx < args.slots:
        raise ConfigError(
            f"n_ctx {args.n_ctx} cannot be shared by {args.slots} slots.",
            hint="Give at least one slot and a context of at least one token per slot.",
        )
