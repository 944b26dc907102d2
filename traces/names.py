"""Every name that a span, an attribute, a lane, a counter or a metric carries.

Where the OpenTelemetry conventions for generative AI have a name it is theirs (`gen_ai.*`, `error.*`,
`service.*`), of one version; everything else starts with `keepwarm.`.
"""

from __future__ import annotations

from typing import Final

CONVENTIONS: Final = "https://opentelemetry.io/schemas/1.41.0"
"""The version of the conventions: the last one before those for generative AI left for a project of
their own, whose names still change."""

# Spans.
RUN: Final = "run"
REQUEST: Final = "request"
QUEUE: Final = "queue"
ADMIT: Final = "admit"
PROMPT_EVALUATION: Final = "prompt_evaluation"
GENERATE: Final = "generate"
WORK: Final = "work"
"""A call of a Python model, up to its result or its first item."""
ITEMS: Final = "items"
"""The rest of a call whose items are streamed."""
MODEL_LOAD: Final = "model_load"
EVICT: Final = "evict"
STAGE: Final = "stage"
"""Category of the spans that `RunTrace.span` opens; their names are their callers'."""

# Parts of a load and of an eviction.
SPAWN: Final = "spawn"
HEADER: Final = "header and vocabulary"
WEIGHTS: Final = "weights"
BUFFERS: Final = "buffers"
RESTORE_KV: Final = "restore KV"
SAVE_KV: Final = "save KV"
END_PROCESS: Final = "end process"

# What else happens to a device or an engine.
READ_AHEAD: Final = "read_ahead"
DENIED: Final = "denied"
DIED: Final = "died"
LOAD_FAILED: Final = "load_failed"
LOW: Final = "low_memory"
OVER_LIMIT: Final = "over_limit"
CORRECTED: Final = "corrected"
PREEMPTED: Final = "preempted"
RESUMED: Final = "resumed"
WAIT: Final = "wait"
RESIDENCY: Final = "residency"
END_OF_LOAD: Final = "/end"
"""The end of a load's id in the id of the eviction that undoes it."""

# Span events.
GRANTED: Final = "keepwarm.granted"
"""When the lease was granted: from here on the request holds its slot."""

# Attributes of the conventions.
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
ERROR_TYPE: Final = "error.type"
ERROR_MESSAGE: Final = "error.message"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"

# Attributes of keepwarm.
RUN_ID: Final = "keepwarm.run.id"
STARTED: Final = "keepwarm.run.started"
PROBLEMS: Final = "keepwarm.run.problems"
"""What is missing on the trace, in words."""
WAITED_FOR: Final = "keepwarm.waited_for"
"""What a request waited for in the queue, in words: `a slot of writer`, `bytes of cuda:0 held by judge`."""
REQUEST_ID: Final = "keepwarm.request.id"
CLIENT: Final = "keepwarm.client"
"""The connection to the keeper that asked, on a trace that the keeper's ring made."""
SLOT: Final = "keepwarm.slot"
REMOTE: Final = "keepwarm.remote"
COLD: Final = "keepwarm.cold"
SERVED_BY: Final = "keepwarm.served_by"
MOVED_AFTER: Final = "keepwarm.moved_after"
"""The error after which another endpoint or model was asked."""
WAITED_SECONDS: Final = "keepwarm.waited_s"
WAITED_FOR_LOAD: Final = "keepwarm.waited_for_load"
PREFETCHED_BY: Final = "keepwarm.prefetched_by"
PROMPT_MS: Final = "keepwarm.prompt_ms"
PREDICTED_MS: Final = "keepwarm.predicted_ms"
LOAD_ID: Final = "keepwarm.load.id"
EVICT_ID: Final = "keepwarm.evict.id"
DEVICE: Final = "keepwarm.device"
STORAGE: Final = "keepwarm.storage"
BYTES: Final = "keepwarm.bytes"
REASON: Final = "keepwarm.reason"
ENGINE: Final = "keepwarm.engine"
FOR_MODEL: Final = "keepwarm.for_model"
SAVE_SECONDS: Final = "keepwarm.kv.save_s"
SAVED_BYTES: Final = "keepwarm.kv.saved_bytes"
RESTORE_SECONDS: Final = "keepwarm.kv.restore_s"
RESTORED_TOKENS: Final = "keepwarm.kv.restored_tokens"
THREAD: Final = "keepwarm.thread"
CHAIN: Final = "keepwarm.chain"
"""Of spans that come one after another for one piece of work: an arrow joins them."""
EVICTED: Final = "keepwarm.evicted"
"""Of a request: the ids of the evictions that it caused, with spaces between."""
SERVED_BY_LOAD: Final = "keepwarm.engine.load"
"""Of a request: the load of the engine that served it."""
REQUESTS: Final = "keepwarm.requests"
FILE_BYTES: Final = "keepwarm.file.bytes"
READ_BYTES: Final = "keepwarm.read.bytes"
BANDWIDTH: Final = "keepwarm.bytes_per_s"
BANDWIDTH_BEST: Final = "keepwarm.best_bytes_per_s"
"""The most that keepers saw a load read from that kind of storage on this machine."""
BANDWIDTH_SHARE: Final = "keepwarm.bandwidth"
"""Both in words: `72% of the best seen, 2.1 GB/s`."""
PLACEMENT: Final = "keepwarm.placement"
HIDDEN: Final = "keepwarm.hidden"
"""Of a load: no request of this run waited for it."""
DECISION: Final = "keepwarm.decision"
"""The beginning of what a decision record says; alone, its reason."""
DECISION_FOLLOWED: Final = "keepwarm.decision.followed"
"""What the policy followed, in words: `declared uses`, say."""
DETAIL: Final = "keepwarm.detail"

CONTENT: Final = frozenset(
    {
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
        "gen_ai.prompt",
        "gen_ai.completion",
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
    }
)
"""Attributes that hold what people wrote and models answered: only with `record_content`."""

# The Chrome Trace view. Perfetto sorts processes by name and threads by tid.
FLOW: Final = "flow"
"""The category of all arrows; the rest are their names."""
LOAD_FLOW: Final = "load"
WAIT_FLOW: Final = "waits for"
EVICT_FLOW: Final = "evicted for"
NEXT_FLOW: Final = "next"
RESIDENT_BYTES: Final = "resident bytes"
DEVICE_BYTES: Final = "device bytes"
TOKENS_A_SECOND: Final = "tokens/s"


def run_lanes(service: str, run_id: str) -> str:
    """Name of the group of lanes that holds the run's own spans."""
    return f"1 run {service} {run_id}"


def process_lanes(service: str, pid: int | None) -> str:
    """Name of the lanes of another process of the run; None: of all that have no group of their own."""
    return f"1 further processes of {service}" if pid is None else f"1 process {pid} of {service}"


def device_lanes(device: str) -> str:
    """Name of the group of lanes and counters of one device."""
    return f"2 device {device}"


def engine_lanes(engine: str, model: str, *, remote: bool) -> str:
    """Name of the group of lanes of one model on its engine."""
    return f"{'4 remote' if remote else '3 engine'} {model} ({engine})"


# Metrics of the conventions.
REQUEST_DURATION: Final = "gen_ai.server.request.duration"
TTFT: Final = "gen_ai.server.time_to_first_token"
TPOT: Final = "gen_ai.server.time_per_output_token"
USAGE: Final = "gen_ai.client.token.usage"
USAGE_KIND: Final = "gen_ai.token.type"

# Metrics of keepwarm.
QUEUE_DURATION: Final = "keepwarm.queue.duration"
LOAD_DURATION: Final = "keepwarm.load.duration"
EVICTIONS: Final = "keepwarm.evictions"
DENIALS: Final = "keepwarm.denials"
DEATHS: Final = "keepwarm.engine.deaths"
FAULTS: Final = "keepwarm.keeper.faults"
QUEUE_DEPTH: Final = "keepwarm.queue.depth"
QUEUE_AGE: Final = "keepwarm.queue.age"
BUSY_SLOTS: Final = "keepwarm.slots.busy"
MODEL_BYTES: Final = "keepwarm.model.resident"
LIMIT_BYTES: Final = "keepwarm.device.limit"
RESERVED_BYTES: Final = "keepwarm.device.reserved"
PROTECTED_BYTES: Final = "keepwarm.device.protected"
BOOKABLE_BYTES: Final = "keepwarm.device.bookable"
FREE_BYTES: Final = "keepwarm.device.free"
LOW_MEMORY: Final = "keepwarm.device.low_memory"

# Attributes of metrics.
MODEL: Final = "keepwarm.model"
"""Of a load or of resident bytes: all names of the engine, where several models share it."""
FAULT_KIND: Final = "keepwarm.fault.kind"
