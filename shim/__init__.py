"""The public API of keepwarm: `chat(model, messages)`, and everything around it.

The functions here use one default `Shim`, made from the configuration that is found at first use; a
program that needs several, or one made in code, makes its own `Shim`. Names are imported when they
are used, because the command line is in this package and starts without HTTP, pydantic and OpenTelemetry.
"""

from typing import TYPE_CHECKING

from shim.lazy_names import check_packages, lazy_names

if TYPE_CHECKING:
    from backends.openai.protocol import Delta, Timings, Usage
    from backends.openai.requests.audio import Segment
    from budget.errors import (
        AdmissionDenied,
        BadModelFile,
        CallerError,
        Cancelled,
        ConfigError,
        DeadlineExceeded,
        EndpointError,
        EndpointUnavailable,
        EngineDied,
        EngineTimeout,
        InternalError,
        InvalidRequest,
        KeeperUnavailable,
        KeepwarmError,
        LoadError,
        LoadFailed,
        NeverFits,
        OutOfMemory,
        OutsideError,
        PromptTooLong,
        QueueFull,
        RoleViolation,
        UnknownModel,
        WorkerError,
    )
    from shim.calls.declaring import Plan
    from shim.calls.options.chat_options import CallOptions, ChatOptions
    from shim.calls.streaming.held_stream import StreamStart
    from shim.calls.streaming.result_stream import AsyncResultStream, ResultStream
    from shim.client import Shim
    from shim.config import Config, load_config
    from shim.defaults import (
        acall,
        achat,
        acount_tokens,
        adeclare,
        aembed,
        ahttp,
        arerank,
        aspeak,
        astream,
        astream_call,
        atokenize,
        atranscribe,
        call,
        chat,
        count_tokens,
        declare,
        default_shim,
        embed,
        history,
        http,
        load,
        pin,
        plan,
        release,
        rerank,
        speak,
        status,
        stream,
        stream_call,
        tokenize,
        traced,
        transcribe,
        unload,
        unpin,
        use,
    )
    from shim.model_info import ModelInfo
    from shim.replies import (
        CallReply,
        EmbeddingReply,
        PastCall,
        Ranked,
        Reply,
        RerankReply,
        Residency,
        SpeechReply,
        TokenReply,
        TranscriptionReply,
    )
    from shim.streams import AsyncReplyStream, ReplyStream

    __version__: str

check_packages("budget", "backends", "traces")

__getattr__ = lazy_names(
    __name__,
    {
        "budget.errors": (
            "AdmissionDenied BadModelFile CallerError Cancelled ConfigError "
            "DeadlineExceeded EndpointError EndpointUnavailable EngineDied EngineTimeout "
            "InternalError InvalidRequest KeeperUnavailable KeepwarmError LoadError "
            "LoadFailed NeverFits OutOfMemory OutsideError PromptTooLong QueueFull "
            "RoleViolation UnknownModel WorkerError"
        ),
        "backends.openai.protocol": "Delta Timings Usage",
        "backends.openai.requests.audio": "Segment",
        "shim.calls.options.chat_options": "CallOptions ChatOptions",
        "shim.client": "Shim",
        "shim.config": "Config load_config",
        "shim.defaults": (
            "acall achat acount_tokens adeclare aembed ahttp arerank aspeak astream astream_call "
            "atokenize atranscribe call chat count_tokens declare default_shim embed history http "
            "load pin plan release rerank speak status stream stream_call tokenize traced transcribe "
            "unload unpin use"
        ),
        "shim.model_info": "ModelInfo",
        "shim.calls.declaring": "Plan",
        "shim.replies": (
            "CallReply EmbeddingReply PastCall Ranked Reply RerankReply Residency SpeechReply "
            "TokenReply TranscriptionReply"
        ),
        "shim.calls.streaming.held_stream": "StreamStart",
        "shim.calls.streaming.result_stream": "AsyncResultStream ResultStream",
        "shim.streams": "AsyncReplyStream ReplyStream",
    },
    distribution="keepwarm",
)

__all__ = [
    "AdmissionDenied",
    "AsyncReplyStream",
    "AsyncResultStream",
    "BadModelFile",
    "CallOptions",
    "CallReply",
    "CallerError",
    "Cancelled",
    "ChatOptions",
    "Config",
    "ConfigError",
    "DeadlineExceeded",
    "Delta",
    "EmbeddingReply",
    "EndpointError",
    "EndpointUnavailable",
    "EngineDied",
    "EngineTimeout",
    "InternalError",
    "InvalidRequest",
    "KeeperUnavailable",
    "KeepwarmError",
    "LoadError",
    "LoadFailed",
    "ModelInfo",
    "NeverFits",
    "OutOfMemory",
    "OutsideError",
    "PastCall",
    "Plan",
    "PromptTooLong",
    "QueueFull",
    "Ranked",
    "Reply",
    "ReplyStream",
    "RerankReply",
    "Residency",
    "ResultStream",
    "RoleViolation",
    "Segment",
    "Shim",
    "SpeechReply",
    "StreamStart",
    "Timings",
    "TokenReply",
    "TranscriptionReply",
    "UnknownModel",
    "Usage",
    "WorkerError",
    "__version__",
    "acall",
    "achat",
    "acount_tokens",
    "adeclare",
    "aembed",
    "ahttp",
    "arerank",
    "aspeak",
    "astream",
    "astream_call",
    "atokenize",
    "atranscribe",
    "call",
    "chat",
    "count_tokens",
    "declare",
    "default_shim",
    "embed",
    "history",
    "http",
    "load",
    "load_config",
    "pin",
    "plan",
    "release",
    "rerank",
    "speak",
    "status",
    "stream",
    "stream_call",
    "tokenize",
    "traced",
    "transcribe",
    "unload",
    "unpin",
    "use",
]

__dir__ = __all__.copy
