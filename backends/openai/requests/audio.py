"""Speech to text and text to speech (`/v1/audio/...` of OpenAI's API)."""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.base import Endpoint
from backends.openai.answers.fields import WrongField, a_list, a_text
from backends.openai.protocol import decode, encode
from backends.openai.requests.verb_request import Question, VerbRequest, number
from budget.errors import InvalidRequest
from traces.text import clean

TRANSCRIBE_PATH: Final = "/v1/audio/transcriptions"
SPEAK_PATH: Final = "/v1/audio/speech"
AUDIO_BYTES: Final = 256 << 20
"""An hour and a half of 24,000 samples a second, of 16 bits."""
MOST_RATE: Final = 0x7FFF_FFFF
"""The most samples a second that the head of a WAV file can say, with its bytes a second."""

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_WAV_HEAD: Final = 44


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a transcription, with its begin and end in seconds."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. `language` and `duration_s` where the model tells them."""

    text: str
    segments: tuple[Segment, ...] = ()
    language: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """Sound: a WAV file. `sample_rate` are its samples a second; None where that cannot be read."""

    audio: bytes
    sample_rate: int | None = None


class TranscribeRequest(VerbRequest[Transcript]):
    """What is said in a recording.

    Args:
        audio: the bytes of an audio file.
        language: the language that is spoken, as `en`; None leaves it to the model.

    Raises:
        InvalidRequest: an argument is not of its type, or empty.
    """

    verb = "transcribe"

    def __init__(self, audio: bytes, language: str | None = None) -> None:
        if not isinstance(audio, bytes) or not audio:
            found = "no bytes" if audio == b"" else type(audio).__name__
            raise InvalidRequest(
                f"transcribe() takes the bytes of an audio file, or its path as a Path; found {found}."
            )
        known = language is None or (isinstance(language, str) and _LANGUAGE.fullmatch(language))
        if not known:
            raise InvalidRequest('language is no code of a language, such as "en".')
        self._audio = audio
        self._language = language

    def question(self, endpoint: Endpoint) -> Question:
        """A form with the file, as servers of OpenAI's API read it."""
        fields = {"model": endpoint.model_id, "response_format": "verbose_json"}
        if self._language is not None:
            fields["language"] = self._language
        edge = f"keepwarm-{secrets.token_hex(16)}"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="audio.wav"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = "".join([*parts, head]).encode() + self._audio + f"\r\n--{edge}--\r\n".encode()
        return Question(TRANSCRIBE_PATH, body, f"multipart/form-data; boundary={edge}".encode())

    def parsed(self, answer: Mapping[str, Any]) -> Transcript:
        """`text`, and the segments where the server gives them."""
        return self.of_result(answer)

    def payload(self) -> Mapping[str, Any]:
        """`audio`, and `language` where it is given."""
        told = {} if self._language is None else {"language": self._language}
        return {"audio": self._audio, **told}

    def of_result(self, result: Any) -> Transcript:
        """A text, or `text`, `segments` (`start`, `end`, `text`), `language` and the duration."""
        found = {"text": result} if isinstance(result, str) else result
        if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
            raise WrongField("text", result, "a string")
        rows = a_list(found.get("segments"), "segments")
        seconds = found.get("duration_s", found.get("duration"))
        return Transcript(
            clean(found["text"].strip()),
            tuple(_segment(row) for row in rows),
            clean(a_text(found.get("language"), "language")) or None,
            None if seconds is None else number(seconds, "duration"),
        )


def _segment(row: Any) -> Segment:
    if not isinstance(row, Mapping):
        raise WrongField("an item of segments", row, "an object")
    start_s, end_s = number(row.get("start"), "start"), number(row.get("end"), "end")
    return Segment(start_s, end_s, clean(a_text(row.get("text"), "text").strip()))


class SpeakRequest(VerbRequest[Speech]):
    """A text, spoken.

    Args:
        text: what is said.
        voice: a voice by its name; None leaves it to the model.

    Raises:
        InvalidRequest: an argument is not of its type, or empty.
    """

    verb = "speak"

    def __init__(self, text: str, voice: str | None = None) -> None:
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequest("speak() takes a text that is not empty.")
        if voice is not None and (not isinstance(voice, str) or not voice):
            raise InvalidRequest("voice is no name of a voice.")
        self._text = text
        self._voice = voice

    def question(self, endpoint: Endpoint) -> Question:
        """A WAV file is asked for, whose head tells the sample rate. Servers want some voice."""
        body = {
            "model": endpoint.model_id,
            "input": self._text,
            "voice": self._voice or "alloy",
            "response_format": "wav",
        }
        return Question(SPEAK_PATH, encode(body), limit_bytes=AUDIO_BYTES)

    def read(self, raw: bytes) -> Mapping[str, Any]:
        """The sound as it is; an answer that begins as an object is an error's."""
        return decode(raw) if raw[:1] == b"{" else {"audio": raw, "data": True}

    def parsed(self, answer: Mapping[str, Any]) -> Speech:
        """The file that came. No sound begins as a list or a page does; a proxy may answer with either."""
        audio = answer.get("audio")
        if isinstance(audio, bytes) and audio.lstrip()[:1] in {b"[", b"<"}:
            raise WrongField("audio", audio.decode("utf-8", "replace"), "the bytes of a sound")
        return self.of_result(answer)

    def payload(self) -> Mapping[str, Any]:
        """`text`, and `voice` where it is given."""
        return {"text": self._text, **({} if self._voice is None else {"voice": self._voice})}

    def of_result(self, result: Any) -> Speech:
        """`audio`: the bytes of a file; or `samples`, floats from -1 to 1, with `sample_rate`."""
        found = {"audio": result} if isinstance(result, bytes) else result
        if not isinstance(found, Mapping):
            raise WrongField("the result", result, "an object with audio, or with samples")
        rate = found.get("sample_rate")
        if rate is not None and (type(rate) is not int or not 1 <= rate <= MOST_RATE):
            raise WrongField("sample_rate", rate, f"a whole number from 1 to {MOST_RATE}")
        audio, samples = found.get("audio"), found.get("samples")
        if isinstance(audio, bytes) and audio:
            return Speech(audio, rate or wav_rate(audio))
        if samples is None or rate is None:
            raise WrongField("audio", audio, "bytes, or samples with a sample_rate")
        return Speech(wav_of(samples, rate), rate)


def wav_rate(audio: bytes) -> int | None:
    """The samples a second of a WAV file, by its head; None for what is none."""
    if len(audio) < _WAV_HEAD or audio[:4] != b"RIFF" or audio[8:16] != b"WAVEfmt ":
        return None
    return int(struct.unpack_from("<I", audio, 24)[0]) or None


def wav_of(samples: Any, rate: int) -> bytes:
    """A WAV file of one channel and 16 bits from floats between -1 and 1, a list or an array.

    Raises:
        WrongField: they are something else.
    """
    listed = samples.ravel().tolist() if hasattr(samples, "ravel") else samples
    if not isinstance(listed, list):
        raise WrongField("samples", listed, "a list of numbers")
    whole = [round(max(-1.0, min(1.0, number(one, "a sample"))) * 32767) for one in listed]
    data = struct.pack(f"<{len(whole)}h", *whole)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    size = struct.pack("<I", 36 + len(data))
    return b"RIFF" + size + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
