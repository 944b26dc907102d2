"""Python models of the tests, written beside a test's configuration."""

from __future__ import annotations

from pathlib import Path

SPEECH = '''
"""A user's module, with what users do."""
import os
import subprocess
import sys
import threading
import time

import numpy as np


class Transcriber:
    def __init__(self, name="tiny", mib=0):
        self.name = name
        self.held = np.ones(mib << 20, np.uint8)
        print("made", name)

    def __call__(self, audio=None, **more):
        return {"name": self.name, "audio": audio, **more}

    def close(self):
        print("closed", self.name, flush=True)
        if "CLOSED" in os.environ:
            open(os.environ["CLOSED"], "w").close()


class Lazy:
    """As faster-whisper: the work happens while the result is iterated over."""

    def __call__(self, n=3, wait=None, said=None):
        def segments():
            try:
                for i in range(n):
                    yield {"i": i, "samples": np.arange(i, dtype=np.int16)}
                    if wait:
                        while not os.path.exists(wait):
                            time.sleep(0.005)
            finally:
                if said:
                    open(said, "w").close()

        return segments(), {"language": "en"}


class Stream(Lazy):
    def __call__(self, **options):
        return super().__call__(**options)[0]


class Odd:
    """Does what its call names."""

    def __call__(self, do, path=None):
        return getattr(self, do)(path)

    def fails(self, path):
        raise ValueError("no such speaker")

    def exits(self, path):
        sys.exit(3)

    def dies(self, path):
        print("about to die", flush=True)
        os._exit(7)

    def segfaults(self, path):
        import ctypes
        ctypes.string_at(0)

    def object(self, path):
        return {"a": [1, object()]}

    def prints(self, path):
        print("x" * 5000)
        sys.stdout.buffer.write(b"\\xff\\x00 bytes\\n")
        return "printed"

    def closes_its_streams(self, path):
        """As daemons do. What is opened next takes the numbers."""
        for fd in (0, 1, 2):
            os.close(fd)

    def breaks_off(self, path):
        def items():
            yield 1
            raise ValueError("the file ends here")
        return items()

    def forks(self, path):
        if os.fork() == 0:
            return "the child comes back"
        return os.getpid()

    def leaves(self, path):
        """A child in a session of its own, and threads that never end."""
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        threading.Thread(target=threading.Event().wait).start()
        return child.pid

    def spins(self, path):
        while not os.path.exists(path):
            pass
        return "spun"

    def holds(self, path):
        open(path, "w").close()
        while True:
            time.sleep(0.01)


class NotThere:
    def __init__(self):
        raise RuntimeError("the weights are not there")


class Silent:
    """Cannot be called."""


class Dies:
    def __init__(self):
        print("loading", flush=True)
        os._exit(9)


class Loud:
    def __init__(self):
        print("x" * 5000)
        sys.stdout.buffer.write(b"\\xff\\x00 bytes\\n")

    def __call__(self):
        return os.getpid()


class Forks(Loud):
    """A child that comes back from the factory as its parent does, or that fails there."""

    def __init__(self, fails=False):
        if os.fork() == 0:
            if fails:
                raise RuntimeError("only in the child")
        else:
            os.wait()


class Leaves(Loud):
    def __init__(self):
        self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        threading.Thread(target=threading.Event().wait).start()

    def __call__(self):
        return self.child.pid


class Hangs:
    def __init__(self):
        time.sleep(600)
'''


def write_speech(folder: Path) -> Path:
    """The user's module in a folder; returns the folder."""
    (folder / "speech.py").write_text(SPEECH)
    return folder
