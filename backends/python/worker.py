"""The program of a Python worker: makes the user's object, and answers calls on a Unix socket.

It runs in the user's interpreter (Python 3.9 or newer), so it imports the standard library and
`frames.py` beside it, and nothing else of ours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import importlib
import importlib.util
import json
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

TEXT_LIMIT = 1 << 16
"""The most characters of a message or a traceback."""


def _from_file(name: str, path: str) -> Any:
    """A module from its file alone: no folder of ours is on the path of the user's code."""
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from backends.python import frames
else:
    frames = _from_file("keepwarm_frames", str(Path(__file__).with_name("frames.py")))


class _Gone(Exception):
    """The other side has hung up."""


class _Job:
    """One call: what is asked, and the connection that waits for it."""

    def __init__(self, sock: socket.socket, op: str, payload: Any) -> None:
        self.sock, self.streamed, self.payload = sock, op == "stream", payload
        self.given_up = False

    def send(self, op: str, value: Any) -> None:
        self.send_frame(*frames.framed(op, value))

    def send_frame(self, data: bytes, fd: int) -> None:
        try:
            sent = self.sock.sendmsg([data], frames.sent_with(fd))
            self.sock.sendall(memoryview(data)[sent:])
        except OSError:
            raise _Gone from None
        finally:
            if fd >= 0:
                os.close(fd)


class _Worker:
    """Answers calls with the user's object, in as many threads as it has slots."""

    def __init__(self, model: Any, spec: dict[str, Any]) -> None:
        self._model = model
        self._pid = os.getpid()
        self._log_fd = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._slots = spec["slots"]
        self._moved = [0] * self._slots
        self._busy = [False] * self._slots
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(spec["socket"])
        self._listening.listen(128)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """A child of the user's code must not keep our connections open."""
        for sock in [self._listening, *self._sockets]:
            sock.close()

    def serve(self) -> None:
        """Accept and answer until `end`; the calls of the first slot run on this, the main thread."""
        threading.Thread(target=self._accept, daemon=True).start()
        for slot in range(1, self._slots):
            self._threads.append(threading.Thread(target=self._work, args=(slot,), daemon=True))
            self._threads[-1].start()
        self._work(0)
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Let every slot finish the call that it runs."""
        for _ in range(self._slots):
            self._jobs.put(None)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock = _above_the_standard(sock)
            self._sockets.add(sock)
            threading.Thread(target=self._attend, args=(sock,), daemon=True).start()

    def _attend(self, sock: socket.socket) -> None:
        """Read one request, and notice when its caller hangs up."""
        incoming = frames.Incoming()
        try:
            while incoming.wanted:
                if not incoming.take(sock):
                    return
            op, value = incoming.value()
            job = _Job(sock, op, value)
            if op == "signs":
                job.send("signs", {"busy": self._busy, "moved": self._moved})
                return
            self._jobs.put(job)
            try:
                sock.recv(1)
            finally:
                job.given_up = True
        except (OSError, frames.BadFrame, _Gone) as error:
            if not isinstance(error, OSError):
                self._log(f"keepwarm: a request was dropped: {error}\n")
        finally:
            incoming.close()
            self._sockets.discard(sock)
            sock.close()

    def _work(self, slot: int) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._busy[slot] = True
            self._moved[slot] += 1
            try:
                if not job.given_up:
                    self._answer(job, slot)
            except _Gone:
                pass
            finally:
                self._busy[slot] = False
                self._moved[slot] += 1
                self._hang_up(job)
            del job

    @staticmethod
    def _hang_up(job: _Job) -> None:
        with contextlib.suppress(OSError):
            job.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that attends it

    def _answer(self, job: _Job, slot: int) -> None:
        try:
            result = self._model(**job.payload)
            _must_be(self._pid)
            if not job.streamed:
                self._send(job, slot, "result", result)
                return
            items = result if isinstance(result, Iterator) else iter([result])
            try:
                for item in items:
                    if job.given_up:
                        return
                    self._send(job, slot, "item", item)
            finally:
                if hasattr(items, "close"):
                    items.close()
            job.send("end", None)
        except _Gone:
            raise
        except BaseException as error:  # the user's code may raise anything, SystemExit too
            _must_be(self._pid)
            told = described(error)
            self._log(told["traceback"])
            job.send("error", told)

    def _log(self, text: str) -> None:
        """Write to the log, also where the user's code has closed the standard streams."""
        with contextlib.suppress(OSError):
            os.write(self._log_fd, text.encode("utf-8", "backslashreplace"))

    def _send(self, job: _Job, slot: int, op: str, value: Any) -> None:
        """Send one frame. Iterators in the value are run to their end here, as part of the call."""
        data, fd = frames.framed(op, value, "the result")
        self._moved[slot] += 1
        self._busy[slot] = False  # a caller that does not read is not this slot's fault
        try:
            job.send_frame(data, fd)
        finally:
            self._busy[slot] = True


def _above_the_standard(sock: socket.socket) -> socket.socket:
    """The same connection above 2: the user's code may close its streams, and prints to their numbers."""
    if sock.fileno() > 2:
        return sock
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 3))


def _must_be(pid: int) -> None:
    """A child that the user's code forked, and that came back from it, ends here."""
    if os.getpid() != pid:
        os._exit(0)


def described(error: BaseException) -> dict[str, str]:
    """An exception as it is sent: its type, its message, and the traceback without our own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    told = "".join(traceback.format_exception(type(error), error, frames))
    try:
        message = str(error)
    except Exception:
        message = "(an exception without a text)"
    return {
        "type": type(error).__qualname__,
        "message": message[:TEXT_LIMIT],
        "traceback": told[-TEXT_LIMIT:],
    }


def _made(spec: dict[str, Any]) -> Any:
    """The user's object, made by the factory of its configuration."""
    if spec["file"]:
        module = _from_file("keepwarm_factory", spec["file"])
    else:
        sys.path.insert(0, spec["cwd"])
        module = importlib.import_module(spec["module"])
    factory: Any = module
    for name in spec["name"].split("."):
        if not hasattr(factory, name):
            has = ", ".join(n for n, v in vars(factory).items() if callable(v) and n[0] != "_")
            raise AttributeError(f"{module.__file__} has no {name}; it has: {has or 'nothing'}")
        factory = getattr(factory, name)
    made = factory(**spec["options"])
    if not callable(made):
        kind = type(made).__qualname__
        raise TypeError(f"the factory made a {kind}, which cannot be called (it has no __call__)")
    return made


def _close(model: Any) -> None:
    close = getattr(model, "close", None)
    if callable(close):
        try:
            close()
        except BaseException:
            traceback.print_exc()


def main() -> None:
    """Wait for the order to load, load, serve, close."""
    faulthandler.enable(all_threads=False)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.register_at_fork(after_in_child=control.close)
    told = control.makefile("r", encoding="utf-8")
    spec_line = told.readline()
    if not spec_line:
        os._exit(0)

    def say(**what: Any) -> None:
        control.sendall(json.dumps(what).encode() + b"\n")

    spec, pid = json.loads(spec_line), os.getpid()
    try:
        model = _made(spec)
        _must_be(pid)
        worker = _Worker(model, spec)
    except BaseException as error:
        _must_be(pid)
        failure = described(error)
        sys.stderr.write(failure["traceback"])
        say(state="failed", **failure)
        os._exit(1)

    def wait_for_the_end() -> None:
        told.read()  # until the keeper closes its end, or is gone
        worker.end()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    say(state="ready", closes=callable(getattr(model, "close", None)))
    worker.serve()
    _close(model)
    with contextlib.suppress(Exception):  # the user's code may have closed or replaced them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    if sys.path[:1] == [str(Path(__file__).parent)]:
        sys.path.pop(0)  # our own folder: none of its modules may be taken for one of the user's
    main()
