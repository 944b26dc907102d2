"""The worker's HTTP door on a Unix socket: llama-server's paths, as far as keepwarm asks for them.

Threads read requests and answer questions about the slot. The work itself is done by the main thread, one
request after the other, because llama.cpp's threads belong to the thread that calls it.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import Any, Final

from backends.llama.binding.answering import AnswerCounts, Answering, Slot
from backends.llama.binding.chat_jobs import ChatJob, read_chat
from backends.llama.binding.native_model import Refused

_MOST_BODY: Final = 256 << 20
_CHAT: Final = "/v1/chat/completions"
_EMBED: Final = "/v1/embeddings"
_TEMPLATE: Final = "/apply-template"
_TOKENIZE: Final = "/tokenize"


class Door(ThreadingUnixStreamServer):
    """Listens, and works on what it is asked.

    Args:
        socket_path: where it listens.
        model_id: the name in answers.
        answering: the model.
        slot: what it does.
        embeds: whether it gives vectors, and does not chat.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, socket_path: str, model_id: str, answering: Answering, slot: Slot, *, embeds: bool
    ) -> None:
        self.model_id, self.answering, self.slot, self.embeds = model_id, answering, slot, embeds
        self._jobs: queue.SimpleQueue[_Handler] = queue.SimpleQueue()
        super().__init__(socket_path, _Handler)

    def work(self) -> None:
        """Accept in a thread, and work here; never returns."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        while True:
            handler = self._jobs.get()
            self.slot.busy, self.slot.task = True, self.slot.task + 1
            self.slot.prompt = self.slot.evaluated = self.slot.decoded = 0
            try:
                handler.work()
            except OSError:
                handler.close_connection = True  # the caller has hung up
            finally:
                self.slot.busy = self.slot.unread = False
                handler.done.set()

    def put(self, handler: _Handler) -> None:
        """Have the main thread work on a request."""
        self._jobs.put(handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A caller that has hung up is no fault; anything else is in the log."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Door
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.done = threading.Event()
        self._body: Any = None
        self._begun = False

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        """What can be asked while a request is worked on."""
        prompts = self.server.answering.prompts
        answers: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/slots": [self.server.slot.row()],
            "/props": {
                "chat_template": prompts.template,
                "chat_template_caps": {"supports_tools": False},
            },
        }
        found = answers.get(self.path)
        self._answer(404 if found is None else 200, found or _error(404, "not found"))

    def do_POST(self) -> None:
        """Read the request, and wait until the main thread has answered it."""
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _MOST_BODY:
            self.close_connection = True
            self._answer(413, _error(413, f"a body has 1 to {_MOST_BODY} bytes"))
            return
        try:
            self._body = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError) as error:
            self._answer(400, _error(400, f"the body is no JSON: {error}"))
            return
        self.done.clear()
        self._begun = False
        self.server.put(self)
        self.done.wait()

    # On the main thread

    def work(self) -> None:
        """Answer the request."""
        try:
            if self._gone():
                self.close_connection = True
            elif self.path == (_EMBED if self.server.embeds else _CHAT):
                self._embed() if self.server.embeds else self._chat(read_chat(self._body))
            elif self.path == _TEMPLATE:
                job = read_chat(self._body)
                self._answer(
                    200, {"prompt": self.server.answering.prompts.prompt(job.messages, job.given)}
                )
            elif self.path == _TOKENIZE:
                self._answer(200, {"tokens": self._tokens(self._body)})
            elif self.path in (_CHAT, _EMBED):
                what = "embeds, and does not chat" if self.server.embeds else "does not embed"
                raise Refused(f"this engine {what}", "not_supported_error")
            else:
                self._answer(404, _error(404, "not found"))
        except Refused as refused:
            self._fail(refused.fields)
        except OSError:
            raise
        except Exception as error:
            traceback.print_exc()
            self._fail(_error(500, f"{type(error).__name__}: {error}")["error"])

    def _chat(self, job: ChatJob) -> None:
        answering = self.server.answering
        answer, tokens = answering.begin(job)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        head["model"] = self.server.model_id
        told = partial(self._progress, head, answer) if job.streamed and job.progress else None
        said = answering.run(job, answer, tokens, self._gone, told)
        if job.streamed:
            head["object"] = "chat.completion.chunk"
            for piece in said:
                self._chunk(head, {"content": piece})
            self._end(head, answer)
            return
        content = "".join(said)
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "finish_reason": answer.finish, "message": message}
        found = {**head, "object": "chat.completion", "choices": [choice]}
        if answer.ended_s:
            self._answer(200, {**found, "usage": answer.usage(), "timings": answer.timings()})

    def _progress(self, head: Mapping[str, Any], answer: AnswerCounts, done: int) -> None:
        told = {"total": answer.n_prompt, "cache": answer.n_cached, "processed": done}
        self._event({**head, "choices": [], "prompt_progress": told})

    def _chunk(
        self, head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None
    ) -> None:
        if not self._begun:
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._event({**head, "choices": [choice]})

    def _end(self, head: Mapping[str, Any], answer: AnswerCounts) -> None:
        if not answer.ended_s:  # the caller has hung up
            self.close_connection = True
            return
        self._chunk(head, {}, answer.finish)
        last = {**head, "choices": [], "usage": answer.usage(), "timings": answer.timings()}
        self._event(last)
        self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _event(self, value: Any) -> None:
        if not self._begun:
            self._begun = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        _, writable, _ = select.select([], [self.connection], [], 0)
        self.server.slot.unread = not writable
        self.wfile.flush()
        self.server.slot.unread = False

    def _embed(self) -> None:
        asked = self._body.get("input") if isinstance(self._body, dict) else None
        texts = [asked] if isinstance(asked, str) else asked
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused("input is a text, or a list of texts")
        rows, count = [], 0
        for number, text in enumerate(texts):
            if self._gone():
                self.close_connection = True
                return
            tokens = self.server.answering.model.tokens(text)
            count += len(tokens)
            vector = self.server.answering.model.vector(tokens)
            self.server.slot.decoded = number + 1
            rows.append({"object": "embedding", "index": number, "embedding": vector})
        usage = {"prompt_tokens": count, "total_tokens": count}
        found = {"object": "list", "model": self.server.model_id, "data": rows, "usage": usage}
        self._answer(200, found)

    def _tokens(self, body: Any) -> list[int]:
        asked = body if isinstance(body, dict) else {}
        if not isinstance(text := asked.get("content"), str):
            raise Refused("content is a text")
        return self.server.answering.model.tokens(text, special=bool(asked.get("add_special")))

    def _fail(self, error: Mapping[str, Any]) -> None:
        if not self._begun:
            self._answer(int(error["code"]), {"error": error})
            return
        self._write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        self.close_connection = True

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _gone(self) -> bool:
        """Whether the caller has hung up: it sends nothing while it waits for an answer."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": "server_error"}}
