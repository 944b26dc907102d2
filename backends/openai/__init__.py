"""The data plane: OpenAI-compatible chat and embeddings, sync and async, on a socket or a URL."""

from backends.openai.answers.delta_stream import AsyncDeltaStream
from backends.openai.async_client import AsyncTransport
from backends.openai.connections.bounds import Timeouts
from backends.openai.protocol import (
    ChatRequest,
    Completion,
    Delta,
    Embeddings,
    Timings,
    Usage,
    assemble,
)
from backends.openai.remote import RemoteEngine
from backends.openai.sync_client import DeltaStream, SyncTransport

__all__ = [
    "AsyncDeltaStream",
    "AsyncTransport",
    "ChatRequest",
    "Completion",
    "Delta",
    "DeltaStream",
    "Embeddings",
    "RemoteEngine",
    "SyncTransport",
    "Timeouts",
    "Timings",
    "Usage",
    "assemble",
]
