"""A user's model under the contract of engines: its call is a generator of words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class Words:
    """Says as many words as it is asked for; each call that runs has a file in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder, self._calls = Path(folder), 0
        print("made", flush=True)

    def __call__(self, n: int) -> Iterator[str]:
        """The words, one by one."""
        self._calls += 1
        runs = self._folder / str(self._calls)
        runs.touch()
        try:
            for i in range(n):
                yield f"word{i} "
        finally:
            runs.unlink()
