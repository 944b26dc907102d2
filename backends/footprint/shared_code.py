"""The engines' code, held in memory by the keeper.

All engines of one build map the same executable and libraries. Holding them mapped keeps them in
the page cache between two engines, so that a start reads nothing, and makes each engine's
proportional share (PSS) at most half of them: what `OverheadModel.code_bytes` books.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, Self

from backends.llama.binaries import binding_libraries

_MAP_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0x8000)
_OTHER_TOOLS: Final = "-impl.so"
_OWN: Final = "libllama-server-impl.so"


def code_files(server: Path | None) -> list[Path]:
    """The executable and the libraries beside it (`../lib`) that an engine maps.

    Without a llama-server they are the libraries of llama-cpp-python.
    """
    if server is None:
        return sorted({path.resolve() for path in binding_libraries()})
    folder = server.parent.parent / "lib"
    libraries = {
        path.resolve()
        for path in folder.glob("lib*.so*")
        if _OTHER_TOOLS not in path.name or path.name == _OWN
    }
    return [server.resolve(), *sorted(libraries)]


class SharedCode:
    """Mappings of the engines' code; they take no memory of their own. `close` releases them."""

    def __init__(self, server: Path | None) -> None:
        self._maps: list[mmap.mmap] = []
        for path in code_files(server):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._maps.append(
                    mmap.mmap(
                        descriptor,
                        0,
                        flags=mmap.MAP_PRIVATE | _MAP_POPULATE,
                        prot=mmap.PROT_READ,
                    )
                )
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Release the mappings. Idempotent."""
        while self._maps:
            self._maps.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
