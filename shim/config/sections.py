"""The sections of a configuration that are about the machine: budget, keeper, trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shim.config.values import (
    Amount,
    Device,
    FilePath,
    Limit,
    Reserve,
    RpcEndpoints,
    Seconds,
    Size,
    Timeout,
    parse_limit,
)

GIB = 1024**3
OFF = False
ON = True
AMOUNT_ALLOWED = 'a number of bytes, a text with a unit ("6GiB", "500MB") or a percentage ("80%")'
SECONDS_ALLOWED = 'seconds, or a text such as "500ms", "90s", "5m", "1h30m"'
TIMEOUT_ALLOWED = f"{SECONDS_ALLOWED}; -1 for no time-out"


def key(default: object, what: str, allowed: str, **constraints: Any) -> Any:
    """A field of a section: its default, what it means, and what may be written there."""
    return Field(
        default=default,
        description=what,
        json_schema_extra={"x-allowed": allowed},
        **constraints,
    )


class Section(BaseModel):
    """What all sections share: frozen, nothing converted silently, no unknown key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class BudgetSection(Section):
    """How many bytes may be booked, on which device, and who waits for how long."""

    device: Device = key(
        "auto",
        "The device whose bytes are budgeted; `auto` takes the first GPU, or the host without one.",
        '"auto", "host", "cuda:N" or "RPCn" (N and n count from 0)',
    )
    rpc: RpcEndpoints = key(
        (),
        "Where `ggml-rpc-server`s listen; their devices are `RPC0`, `RPC1`, ... in this order. Each "
        "needs a `limit` in bytes: what a server reports is its whole machine.",
        'a list of "host:port", each once (at most 16)',
    )
    limit: Limit = key(
        Amount(share=0.9),
        "Bytes that models may take on the device; a percentage is of the device's total.",
        f"{AMOUNT_ALLOWED}, above zero and at most 100%",
    )
    reserve: Reserve | None = key(
        None,
        "Bytes of the device that stay free for other programs: models get the smaller of `limit` "
        "and total - reserve. Left out: the smaller of 2GiB and 5%.",
        f"{AMOUNT_ALLOWED}, below 100%",
    )
    policy: Literal["forecast", "idle-cost", "lfu-decay", "lru", "ttl"] = key(
        "forecast",
        "How victims of an eviction are chosen.",
        '"forecast", "idle-cost", "lfu-decay", "lru", "ttl"',
    )
    preempt: bool = key(
        ON,
        "Whether a request of higher priority may interrupt the answer of a lower one, which goes on "
        "after it. Only what is streamed, or of a priority below 0, is interrupted, and only without "
        "grammar, schema, tools, log probabilities or a seed at a temperature above 0.",
        "true or false",
    )
    max_wait: Seconds = key(
        30.0,
        "How long a waiting request can be passed over for others whose model is resident.",
        SECONDS_ALLOWED,
    )
    max_queue: int = key(
        256,
        "Requests that may wait at once, all models together; one more gets QueueFull.",
        "a whole number, 0 or more",
        ge=0,
    )
    max_queue_per_model: int | None = key(
        None,
        "Requests that may wait for any one model; left out: only `max_queue` counts.",
        "a whole number, 0 or more",
        ge=0,
    )

    prefetch: Literal[True, False, "stage"] = key(
        ON,
        "What declared plans may cause ahead: `true` loads what comes next where nobody needs the "
        "bytes and a core is free of generating (see `threads`), and reads its file into the page cache "
        'elsewhere; `"stage"` only reads; `false` does neither.',
        'true, false or "stage"',
    )
    stage_rate: Size = key(
        Amount(fixed_bytes=10**9),
        "Bytes a second that are read ahead at most; 0 is no bound.",
        'a number of bytes, or a text with a unit ("500MB")',
    )

    def reserve_bytes(self, total_bytes: int) -> int:
        """Bytes kept free on a device of `total_bytes`."""
        if self.reserve is None:
            return min(2 * GIB, total_bytes // 20)
        return self.reserve.resolve(total_bytes)

    def limit_bytes(self, total_bytes: int) -> int:
        """Bytes that may be booked on a device of `total_bytes`; never negative."""
        free_for_models = total_bytes - self.reserve_bytes(total_bytes)
        return max(0, min(self.limit.resolve(total_bytes), free_for_models))


def budget_conflicts(given: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Contradictions between the keys of `[budget]`: the key, what is wrong, what is allowed."""
    device = given.get("device", "auto")
    remote = isinstance(device, str) and device.startswith("RPC")
    if remote and "rpc" not in given:
        yield "rpc", f"no endpoint for device {device}", 'a list of "host:port"'
    if "rpc" in given and not remote:
        yield "rpc", f'endpoints with device "{device}"', 'leave it out, or device = "RPC0"'
    if remote and not _in_bytes(given.get("limit")):
        found = "no limit" if "limit" not in given else f'"{given["limit"]}"'
        yield "limit", f"{found} for device {device}", "bytes, such as 6GiB (no percentage)"


def _in_bytes(limit: object) -> bool:
    try:
        return parse_limit(limit).fixed_bytes is not None
    except ValueError:
        return limit is not None  # what is wrong with it is said already


class KeeperSection(Section):
    """The background process that owns the books and the engines."""

    idle_exit: Timeout = key(
        1800.0,
        "How long the keeper stays without a client when it started by itself.",
        TIMEOUT_ALLOWED,
    )
    stall_timeout: Seconds = key(
        60.0,
        "A load that makes no progress for this long has failed.",
        SECONDS_ALLOWED,
    )
    stop_grace: Seconds = key(
        2.0,
        "How long an engine may take to stop politely before it is killed.",
        SECONDS_ALLOWED,
    )


class KvSection(Section):
    """KV state that is kept on disk while its model is away."""

    enabled: bool = key(
        ON,
        "Save the KV state of conversations and warm prompts when a model is evicted, and restore it "
        "when the model returns.",
        "true or false",
    )
    limit: Size = key(
        Amount(fixed_bytes=2 * GIB),
        "Bytes of all saved state; what was of no use for longest goes first. 0 saves nothing.",
        'a number of bytes, or a text with a unit ("6GiB", "500MB")',
    )
    folder: FilePath | None = key(
        None,
        "Where it is kept (mode 0700); left out: `keepwarm/kv` in the user's state folder. A folder in "
        "RAM (`/dev/shm/...`) is faster, and its bytes are not booked.",
        "a path; a relative one starts at this file's folder",
    )

    max_age: Seconds = key(
        86400.0,
        "How long a saved conversation is kept after its last use, over restarts of the keeper, too. 0: "
        "conversations end with the keeper.",
        SECONDS_ALLOWED,
    )

    @property
    def limit_bytes(self) -> int:
        """The budget; 0 when nothing is to be saved."""
        return self.limit.resolve(0) if self.enabled else 0


class TraceSection(Section):
    """What is written about each run."""

    enabled: bool = key(OFF, "Write a trace of every run.", "true or false")
    folder: FilePath | None = key(
        None,
        "Where traces and `runs.jsonl` go; left out: `keepwarm/runs` in the user's state folder.",
        "a path; a relative one starts at this file's folder",
    )
    content: bool = key(OFF, "Write prompts and answers into the trace.", "true or false")
    compress: bool = key(OFF, "Write `.json.gz` instead of `.json`.", "true or false")
