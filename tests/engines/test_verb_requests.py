"""Requests of rerank, transcribe, speak and tokenize: what is sent, and what is read of the answers."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends.base import Capabilities, Endpoint
from backends.kinds import Backend
from backends.openai.requests.audio import (
    Segment,
    SpeakRequest,
    Speech,
    TranscribeRequest,
    Transcript,
    wav_rate,
)
from backends.openai.requests.rerank import RerankRequest
from backends.openai.requests.tokens import TokenizeRequest
from budget.errors import EndpointError, InvalidRequest, WorkerError

DOCUMENTS = ["a", "b", "c"]


def endpoint(backend: Backend = "openai", *, rerank: bool = True) -> Endpoint:
    """Some endpoint."""
    return Endpoint("http://h", "m", backend, capabilities=Capabilities(rerank=rerank))


@pytest.mark.parametrize(
    "answer",
    [
        {"results": [{"index": i, "relevance_score": s} for i, s in enumerate((0.1, 3, -2.5))]},
        {"data": [{"index": i, "score": s} for i, s in ((2, -2.5), (0, 0.1), (1, 3))]},
    ],
)
def test_a_ranking_is_by_score_whatever_the_servers_order(answer: dict[str, Any]) -> None:
    """llama-server sends documents in their order, others sorted; `top_n` is cut here."""
    asked = RerankRequest("q", DOCUMENTS)
    assert asked.parse(answer).ranked == ((1, 3.0), (0, 0.1), (2, -2.5))
    assert RerankRequest("q", DOCUMENTS, top_n=1).parse(answer).ranked == ((1, 3.0),)
    sent = json.loads(asked.question(endpoint()).body)
    assert sent == {"model": "m", "query": "q", "documents": DOCUMENTS}


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [{"index": i, "relevance_score": 1} for i in (0, 1)],
        [{"index": i, "relevance_score": 1} for i in (0, 1, 3)],
        [{"index": i, "relevance_score": 1} for i in (0, 1, 1)],
        [{"index": i, "relevance_score": float("nan")} for i in range(3)],
        [{"index": i} for i in range(3)],
        ["x"],
    ],
)
def test_a_ranking_that_is_none_is_typed(rows: Any) -> None:
    """Places that no document has, that come twice or are missing; scores that are no numbers."""
    with pytest.raises(EndpointError, match="shape of rerank"):
        RerankRequest("q", DOCUMENTS).parse({"results": rows})


@pytest.mark.parametrize(
    "result",
    [
        {"scores": [0.5, 2, -1]},
        [0.5, 2, -1],
        {"scores": np.array([0.5, 2, -1], np.float32)},
        {"scores": np.array([[0.5], [2], [-1]])},
    ],
)
def test_a_python_models_scores_may_have_the_forms_of_libraries(result: Any) -> None:
    """Lists and arrays, one score a document."""
    asked = RerankRequest("q", DOCUMENTS)
    assert asked.payload() == {"query": "q", "documents": DOCUMENTS}
    assert asked.result("m", result).ranked == ((1, 2.0), (0, 0.5), (2, -1.0))
    with pytest.raises(WorkerError, match="m returned no result of rerank"):
        asked.result("m", {"scores": [1]})


@pytest.mark.parametrize(
    "make",
    [
        lambda: RerankRequest("", ["a"]),
        lambda: RerankRequest("q", []),
        lambda: RerankRequest("q", "text"),
        lambda: RerankRequest("q", None),  # type: ignore[arg-type]
        lambda: RerankRequest("q", ["a", ""]),
        lambda: RerankRequest("q", ["a"], top_n=0),
        lambda: TranscribeRequest(b""),
        lambda: TranscribeRequest("path"),  # type: ignore[arg-type]
        lambda: TranscribeRequest(b"x", language="en\r\nX: y"),
        lambda: SpeakRequest(" "),
        lambda: SpeakRequest("x", voice=""),
        lambda: TokenizeRequest(3),  # type: ignore[arg-type]
        lambda: RerankRequest("q", ["a"]).question(endpoint("llama.cpp", rerank=False)),
    ],
)
def test_what_no_engine_could_take_is_refused_before_anything_is_sent(make: Any) -> None:
    """Empty texts, wrong types, a header in a language, an engine that does not rerank."""
    with pytest.raises(InvalidRequest):
        make()


def test_a_recording_is_sent_as_a_form_with_its_bytes_as_they_are() -> None:
    """Bytes that look like the end of a form are no end of this one."""
    audio = b"RIFF\r\n--keepwarm--\r\n\0\xff"
    asked = TranscribeRequest(audio, "en").question(endpoint())
    edge = asked.content_type.partition(b"boundary=")[2]
    parts = asked.body.split(b"--" + edge)
    assert parts[-1] == b"--\r\n"
    fields = [part.partition(b"\r\n\r\n") for part in parts[1:-1]]
    assert [value.removesuffix(b"\r\n") for _, _, value in fields] == [
        b"m", b"verbose_json", b"en", audio,
    ]  # fmt: skip
    assert TranscribeRequest(audio, "en").payload() == {"audio": audio, "language": "en"}


def test_transcripts_are_read_with_and_without_segments() -> None:
    """OpenAI's names and those of the ready-made factory; a text alone is a transcript, too."""
    asked = TranscribeRequest(b"x")
    rows = [{"start": 0, "end": 1.5, "text": " Hello. ", "id": 0}]
    whole = {"text": " Hello. ", "segments": rows, "language": "english", "duration": 1.5}
    assert asked.parse(whole) == Transcript(
        "Hello.", (Segment(0.0, 1.5, "Hello."),), "english", 1.5
    )
    assert asked.parse({"text": "Hi."}) == Transcript("Hi.")
    assert asked.result("m", "Hi.") == Transcript("Hi.")
    for odd in ({}, {"text": None}, {"text": "x", "segments": [{"start": "0", "end": 1}]}):
        with pytest.raises(EndpointError):
            asked.parse(odd)


def test_sound_has_its_sample_rate_from_its_head_or_from_the_model() -> None:
    """A WAV file as it is; samples of a Python model become one."""
    asked = SpeakRequest("Hello.")
    samples = np.array([0.0, 1.0, -2.0], np.float32)
    made = asked.result("m", {"samples": samples, "sample_rate": 16_000})
    assert made.sample_rate == wav_rate(made.audio) == 16_000
    with wave.open(io.BytesIO(made.audio)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 3)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [0, 32767, -32767]
    assert asked.parse(asked.read(made.audio)) == made
    assert asked.result("m", {"audio": b"OggS", "sample_rate": 8000}) == Speech(b"OggS", 8000)
    assert asked.parse(asked.read(b"ID3...")).sample_rate is None
    for odd in ({}, {"samples": samples}, {"audio": ""}, {"audio": b"x", "sample_rate": -1}, 3):
        with pytest.raises(WorkerError):
            asked.result("m", odd)
    for rate in (1 << 31, 1 << 40):
        with pytest.raises(WorkerError, match="sample_rate"):
            asked.result("m", {"samples": samples, "sample_rate": rate})
    for page in (b"<html>Bad gateway</html>", b" <!doctype html>", b"[]"):
        with pytest.raises(EndpointError, match="bytes of a sound"):
            asked.parse(asked.read(page))


def test_tokens_are_asked_for_in_the_words_of_each_server() -> None:
    """llama-server and vLLM name a text differently; an unknown server gets both names."""
    asked = TokenizeRequest("x")
    bodies = {
        kind: json.loads(asked.question(endpoint(kind)).body)
        for kind in ("llama.cpp", "vllm", "openai")
    }
    assert bodies["llama.cpp"] == {"content": "x", "add_special": False}
    assert bodies["vllm"] == {"model": "m", "prompt": "x", "add_special_tokens": False}
    assert bodies["openai"] == bodies["llama.cpp"] | bodies["vllm"]
    chat = TokenizeRequest([{"role": "user", "content": "x"}])
    assert json.loads(chat.question(endpoint("vllm")).body)["add_generation_prompt"] is True
    assert asked.parse({"tokens": [1, 2], "count": 2}) == (1, 2)
    for odd in ({}, {"tokens": ["1"]}, {"tokens": "12"}):
        with pytest.raises(EndpointError):
            asked.parse(odd)


def test_what_is_wrong_in_a_request_is_told() -> None:
    """One text instead of a list, no text, no bytes, no count, and messages for a Python model."""
    told: dict[str, Callable[[], object]] = {
        "not a single one": lambda: RerankRequest("q", "one text"),
        "the list is empty": lambda: RerankRequest("q", []),
        r"wrong at: \[1\]": lambda: RerankRequest("q", ["a", ""]),
        "top_n is 0": lambda: RerankRequest("q", ["a"], 0),
        "found str": lambda: TranscribeRequest("hello.wav"),  # type: ignore[arg-type]
        "found no bytes": lambda: TranscribeRequest(b""),
        "not of messages": lambda: TokenizeRequest([{"role": "user", "content": "x"}]).payload(),
    }
    for said, asked in told.items():
        with pytest.raises(InvalidRequest, match=said):
            asked()
    with pytest.raises(WorkerError, match="a list of 1, where one of 2 numbers is due"):
        RerankRequest("q", ["a", "b"]).result("m", {"scores": [1.0]})
