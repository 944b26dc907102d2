"""`rerank`, `transcribe`, `speak`, `tokenize` of a `Shim`: real engines, real workers, real HTTP."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import (
    EndpointError,
    InvalidRequest,
    RoleViolation,
    Shim,
    UnknownModel,
    WorkerError,
)
from tests.small_servers import as_json, small_server
from tools.reranker import write_reranker

QUERY = "what is a cat"
DOCUMENTS = ["a cat is an animal", "stone", "the moon and the sun are far away from it"]
MODULE = """
class Ranker:
    def __call__(self, query, documents):
        return {"scores": [len(set(query) & set(document)) for document in documents]}


class Speaker:
    def __call__(self, text, voice="low"):
        return {"samples": [0.5 if voice == "low" else 1.0] * len(text), "sample_rate": 8000}


class Ear:
    def __call__(self, audio, language="en"):
        return {"text": f"{len(audio)} bytes", "language": language,
                "segments": [{"start": 0, "end": 1, "text": "all"}]}


class Wrong:
    def __call__(self, **payload):
        return {"nothing": sorted(payload)}
"""


@pytest.fixture(scope="module")
def shim(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A chat model, a reranker, an embedder and Python models of every verb."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "verbs_module.py").write_text(MODULE)

    def code(name: str, verb: str) -> dict[str, Any]:
        more = {"can": [verb], "cwd": str(folder), "bytes": "64MiB"}
        return {"factory": f"verbs_module:{name}", **more}

    models = {
        "chat": {"path": str(tiny_models["producer"]), "context": 512},
        "vec": {"path": str(tiny_models["embedder"]), "role": "embedder", "context": 256},
        "rank": {
            "path": str(write_reranker(folder / "rank.gguf")),
            "role": "reranker",
            "context": 512,
        },
        "code-rank": code("Ranker", "rerank"),
        "speaker": code("Speaker", "speak"),
        "ear": code("Ear", "transcribe"),
        "wrong": code("Wrong", "rerank"),
    }
    models["no-head"] = {**models["chat"], "role": "reranker"}
    with Shim({"budget": {"device": "host", "limit": "3GiB"}, "models": models}) as made:
        yield made


@pytest.mark.real
def test_a_real_reranker_orders_documents(shim: Shim) -> None:
    """All, or the first of them; its bytes are booked as those of any model, and none are uncounted."""
    reply = shim.rerank("rank", QUERY, DOCUMENTS)
    assert sorted(row.index for row in reply.ranked) == [0, 1, 2]
    scores = [row.score for row in reply.ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    assert [row.document for row in reply.ranked] == [DOCUMENTS[row.index] for row in reply.ranked]
    assert reply.usage.prompt_tokens > 0
    first = asyncio.run(shim.arerank("rank", QUERY, DOCUMENTS, top_n=1)).ranked
    assert first == reply.ranked[:1]
    rows = {row["models"][0]: row for row in shim.status()["engines"]}
    assert rows["rank"]["leases"] == []
    assert "not counted" not in rows["rank"]["placement"]
    assert [past.operation for past in shim.history()][-2:] == ["rerank", "rerank"]


@pytest.mark.real
def test_tokens_of_messages_are_those_of_the_prompt(shim: Shim) -> None:
    """As the engine counts them in a chat; of a text alone they are fewer, and embedders have them, too."""
    messages = [{"role": "user", "content": "Hello world."}]
    counted = shim.chat("chat", messages, max_tokens=1).usage.prompt_tokens
    assert shim.count_tokens("chat", messages) == counted
    alone = shim.tokenize("chat", "Hello world.")
    assert 0 < len(alone) < counted
    assert asyncio.run(shim.atokenize("chat", "Hello world.")).tokens == alone.tokens
    assert asyncio.run(shim.acount_tokens("vec", "Hello world.")) > 0


def test_python_models_do_the_verbs_that_they_say(shim: Shim) -> None:
    """`can` names them; a result that is none of the verb's is an error that leaves the model there."""
    assert shim.rerank("code-rank", "ab", ["x", "ab"]).ranked[0].document == "ab"
    spoken = shim.speak("speaker", "Hello.", voice="high")
    assert spoken.sample_rate == 8000
    with wave.open(io.BytesIO(spoken.audio)) as file:
        assert file.getnframes() == 6
    heard = asyncio.run(shim.atranscribe("ear", spoken.audio, language="de"))
    assert (str(heard), heard.language) == (f"{len(spoken.audio)} bytes", "de")
    assert [(one.start_s, one.end_s, one.text) for one in heard.segments] == [(0.0, 1.0, "all")]
    with pytest.raises(WorkerError, match="wrong returned no result of rerank"):
        shim.rerank("wrong", "a", ["b"])
    assert asyncio.run(shim.aspeak("speaker", "Hi.")).sample_rate == 8000


def test_a_model_that_lacks_the_verb_says_which_ones_have_it(shim: Shim) -> None:
    """Before anything is loaded; options of chats are no options of these."""
    refusals: dict[str, Callable[[], Any]] = {
        "code-rank, no-head, rank, wrong": lambda: shim.rerank("vec", "a", ["b"]),
        "that do: ear": lambda: shim.transcribe("chat", b"x"),
        "that do: speaker": lambda: shim.speak("rank", "x"),
        "that do: chat": lambda: shim.chat("rank", "x"),
        "unknown option 'temperature'": lambda: shim.rerank("rank", "a", ["b"], temperature=1),  # type: ignore[call-arg]
        "cannot be read": lambda: shim.transcribe("ear", Path("/nowhere.wav")),
    }
    for words, ask in refusals.items():
        with pytest.raises(InvalidRequest, match=f"(?i){words}"):
            ask()
    with pytest.raises(UnknownModel):
        shim.tokenize("absent", "x")


def test_a_reranker_needs_the_file_of_one(shim: Shim) -> None:
    """A chat model's file has no head that makes a score."""
    with pytest.raises(RoleViolation, match="a reranker needs rank"):
        shim.rerank("no-head", "a", ["b"])


def says(path: str, body: bytes) -> Any:
    """A server of OpenAI's audio paths."""
    if path == "/v1/audio/transcriptions":
        return as_json({"text": "Hello.", "segments": [{"start": 0, "end": 1, "text": "Hello."}]})
    if path == "/v1/audio/speech":
        return 200, "audio/wav", b"RIFF"
    if path == "/v1/rerank":
        return as_json({"detail": "no such model"}, 422)
    return as_json({"detail": "Not Found"}, 404)


def test_endpoints_get_audio_by_openais_paths() -> None:
    """A form there, bytes back; refusals have the server's own words, in a form's case, too."""
    with small_server(says) as server:
        far = {"url": server.url, "model_id": "far-1"}
        with Shim({"models": {"far": far}}) as shim:
            assert shim.transcribe("far", b"\0\r\nsound").segments[0].end_s == 1.0
            path, headers, body = server.asked[-1]
            assert (path, headers["Content-Type"][:19]) == (
                "/v1/audio/transcriptions",
                "multipart/form-data",
            )
            assert b"\0\r\nsound\r\n" in body
            assert shim.speak("far", "Hi.").audio == b"RIFF"
            with pytest.raises(InvalidRequest, match="no such model"):
                shim.rerank("far", "a", ["b"])
            with pytest.raises(EndpointError, match="/tokenize"):
                shim.tokenize("far", "x")
            server.says = lambda _path, _body: as_json({"detail": "too loud"}, 422)
            with pytest.raises(InvalidRequest, match="too loud"):
                shim.transcribe("far", b"x")
            server.says = lambda _path, _body: as_json({"error": {"message": "mute"}})
            with pytest.raises(EndpointError, match="mute"):
                shim.speak("far", "x")
