"""Faults of loads, and of what engines answer: memory that is short, paths that are taken, odd servers.

Each function says whether its fault was done, and has put right what lasts when it returns.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from campaign.file_faults import replace, whole_again
from campaign.place import Place
from campaign.process_faults import limited

APPEARS_WITHIN_S = 1.5
TAKEN_WITHIN_S = 1.5
GROWN_BYTES = 1 << 20


def _next_engine(place: Place, name: str) -> int | None:
    """The process of the next load of a model, which is unloaded and asked for."""
    before = set(place.engines())
    place.unload(name)
    place.ask_soon(name)
    until = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < until:
        new = [pid for pid in place.engines() if pid not in before]
        if new:
            return new[0]
        time.sleep(0.002)
    return None


def _word_after(place: Place, name: str, option: str) -> str:
    """What follows an option on the command line of a model's next process; nothing if it never appears."""
    pid = _next_engine(place, name)
    until = time.monotonic() + APPEARS_WITHIN_S
    with contextlib.suppress(psutil.Error):
        while pid is not None and time.monotonic() < until:
            words = psutil.Process(pid).cmdline()
            if option in words[:-1]:
                return words[words.index(option) + 1]
            time.sleep(0.001)
    return ""


def load_out_of_memory(place: Place) -> bool:
    """A process that loads gets no more memory."""
    pid = _next_engine(place, place.chance.choice(("a", "b", "c", "w", "s")))
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            size = psutil.Process(pid).memory_info().vms + GROWN_BYTES
            return limited(pid, resource.RLIMIT_AS, size)
    return False


def load_killed(place: Place) -> bool:
    """SIGKILL of a process that loads."""
    pid = _next_engine(place, place.chance.choice(("a", "b", "c", "w", "s")))
    with contextlib.suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, 9)
            return True
    return False


def load_of_truncated_file(place: Place) -> bool:
    """A file is cut when its inspection is over and its load begins."""
    return _changed_at_load(place, lambda path: os.truncate(path, path.stat().st_size // 2))


def load_of_replaced_file(place: Place) -> bool:
    """A file is replaced when its inspection is over and its load begins."""
    other = place.models["b"].read_bytes()
    return _changed_at_load(place, lambda path: replace(path, other))


def _changed_at_load(place: Place, change: Callable[[Path], None]) -> bool:
    name = place.chance.choice(("a", "c"))
    if _next_engine(place, name) is None:
        return False
    path = place.models[name]
    with whole_again(path):
        change(path)
        time.sleep(0.3)
    return True


def engine_path_taken(place: Place) -> bool:
    """Another program listens where a llama-server that starts was to listen."""
    found = _word_after(place, place.chance.choice(("a", "c")), "--host")
    if not found:
        return False
    path = Path(found)
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.bind(str(path))
            other.listen()
        except OSError:
            return False
        time.sleep(0.5)
    path.unlink(missing_ok=True)
    return True


def server_port_taken(place: Place) -> bool:
    """Another program listens on the port that a server which starts was given."""
    port = _word_after(place, "s", "server_program.py")
    if not port:
        return False
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", int(port)))
            other.listen()
        except OSError:
            return False
        time.sleep(1.0)
    return True


def _mischief(place: Place, file: str, what: str) -> bool:
    """Leave an order, and see whether an engine takes it."""
    order = place.root / file
    new = place.root / "order.new"
    new.write_text(what)
    new.replace(order)
    until = time.monotonic() + TAKEN_WITHIN_S
    while order.exists() and time.monotonic() < until:
        time.sleep(0.01)
    with contextlib.suppress(FileNotFoundError):
        order.unlink()
        return False
    for left in place.root.glob(f"{file}.*"):
        if what in ("hang", "elsewhere"):
            place.stopped.add(int(left.suffix[1:]))
        left.unlink()
    return True


def worker_code_raises(place: Place) -> bool:
    """A Python model raises, or returns what cannot be sent."""
    return _mischief(place, "worker-mischief", place.chance.choice(("raise", "object")))


def worker_code_dies(place: Place) -> bool:
    """A Python model ends its process in a call."""
    return _mischief(place, "worker-mischief", place.chance.choice(("exit", "crash")))


def worker_code_hangs(place: Place) -> bool:
    """A Python model does nothing, for good."""
    return _mischief(place, "worker-mischief", "hang")


def worker_code_litters(place: Place) -> bool:
    """A Python model prints noise, or leaves threads and a child."""
    return _mischief(place, "worker-mischief", place.chance.choice(("print", "leave")))


def worker_cannot_load(place: Place) -> bool:
    """A Python model cannot be made: it raises, ends its process, or does nothing."""
    place.unload("w")
    return _mischief(place, "worker-load", place.chance.choice(("raise", "exit", "hang")))


def server_closes_unanswered(place: Place) -> bool:
    """A server closes the connection without an answer."""
    return _mischief(place, "server-mischief", "close")


def server_answers_half(place: Place) -> bool:
    """A server ends in the middle of an answer or a stream."""
    return _mischief(place, "server-mischief", "half")


def server_events_malformed(place: Place) -> bool:
    """A server's answer, or an event of its stream, is no JSON and no UTF-8."""
    return _mischief(place, "server-mischief", "malformed")


def server_fails(place: Place) -> bool:
    """A server answers 500, or ends in the middle of a request."""
    return _mischief(place, "server-mischief", place.chance.choice(("fail", "exit")))


def server_does_not_start(place: Place) -> bool:
    """A command ends at once, never listens, or listens on another port."""
    place.unload("s")
    return _mischief(place, "server-load", place.chance.choice(("exit", "hang", "elsewhere")))
