"""The public API of keepwarm: `chat(model, messages)`, and everything around it.

The functions here use one default `Shim`, made from the configuration that is found at first use; a
program that needs several, or one made in code, makes its own `Shim`. Names are imported when they
are used, because the command line is in this package and starts without HTTP, pydantic and OpenTelemetry.
"""

from typing import TYPE_CHECKING

from shim.lazy_names import check_packages, lazy_names

if TYPE_CHECKING:
    from backends.openai.protocol import Delta, Timings, Usage
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
    )
    from shim.calls.chat_options import CallOptions, ChatOptions
    from shim.calls.declaring import Plan
    from shim.client import Shim
    from shim.config import Config, load_config
    from shim.defaults import (
        achat,
        adeclare,
        aembed,
        astream,
        chat,
        declare,
        default_shim,
        embed,
        history,
        load,
        pin,
        plan,
        release,
        status,
        stream,
        unload,
        unpin,
        use,
    )
    from shim.model_info import ModelInfo
    from shim.replies import EmbeddingReply, PastCall, Reply, Residency
    from shim.streams import AsyncReplyStream, ReplyStream, StreamStart

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
            "RoleViolation UnknownModel"
        ),
        "backends.openai.protocol": "Delta Timings Usage",
        "shim.calls.chat_options": "CallOptions ChatOptions",
        "shim.client": "Shim",
        "shim.config": "Config load_config",
        "shim.defaults": (
            "achat adeclare aembed astream chat declare default_shim embed history load pin plan "
            "release status stream unload unpin use"
        ),
        "shim.model_info": "ModelInfo",
        "shim.calls.declaring": "Plan",
        "shim.replies": "EmbeddingReply PastCall Reply Residency",
        "shim.streams": "AsyncReplyStream ReplyStream StreamStart",
    },
    distribution="keepwarm",
)

__all__ = [
    "AdmissionDenied",
    "AsyncReplyStream",
    "BadModelFile",
    "CallOptions",
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
    "Reply",
    "ReplyStream",
    "Residency",
    "RoleViolation",
    "Shim",
    "StreamStart",
    "Timings",
    "UnknownModel",
    "Usage",
    "__version__",
    "achat",
    "adeclare",
    "aembed",
    "astream",
    "chat",
    "declare",
    "default_shim",
    "embed",
    "history",
    "load",
    "load_config",
    "pin",
    "plan",
    "release",
    "status",
    "stream",
    "unload",
    "unpin",
    "use",
]

__dir__ = __all__.copy
