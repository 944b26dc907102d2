"""The tables of `docs/engines.md`, from the kinds of engines and their contract.

`python -m tests.engines.capability_table` writes them into the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from backends.kinds import KINDS, Backend, Verb
from shim.config.schema.document import Config
from shim.config.verbs import verbs_of
from tests.engines.contract import CANNOT, FEATURES

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
BEGIN: Final = "<!-- from the contract of engines: python -m tests.engines.capability_table -->"
END: Final = "<!-- end -->"
_ROLES: Final[Mapping[str, Mapping[str, Any]]] = {
    'with `role = "embedder"`': {"role": "embedder"},
    'with `role = "reranker"`': {"role": "reranker"},
}
PLAIN: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama.cpp": {"path": "x.gguf"},
    "llama-cpp-python": {"path": "x.gguf", "backend": "llama-cpp-python"},
    "python": {"factory": "a:B"},
    "server": {"command": ["x", "{port}"]},
    "vllm here": {"path": "x", "backend": "vllm"},
    "vllm": {"url": "http://h", "backend": "vllm"},
    "ollama": {"url": "http://h", "backend": "ollama"},
    "openai": {"url": "http://h"},
}
"""Every kind in its simplest form; the contract's names of them are the columns."""
_WITH: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "llama.cpp": {**_ROLES, "with `mmproj`": {"mmproj": "y.gguf"}},
    "llama-cpp-python": _ROLES,
    "vllm here": _ROLES,
}
"""The keys that have a kind do more."""
_ARGUED: Final = {("vllm here", "tools"): "with `engine_args`"}
"""What a kind does when it is started so."""
_TITLES: Final = {"vllm here": "`vllm` with a `path`", "vllm": "`vllm` with a `url`"}
_CHAT: Final = ("chat", "stream", "http")


def _entry(keys: Mapping[str, Any]) -> frozenset[Verb]:
    config = Config.from_mapping({"models": {"m": dict(keys)}}, base=Path("/"))
    return verbs_of(config.models["m"])


def _verb(kind: str, verb: Verb) -> str:
    """A cell: what a model of a kind does, and with which keys."""
    plain = PLAIN[kind]
    if verb in _entry(plain):
        asks = "url" in plain and verb not in _CHAT
        return "if it does" if asks or (kind, verb) == ("vllm here", "images") else "yes"
    if kind in ("python", "server"):
        able = verb in KINDS[_backend(kind)].verbs
        return "if `can` says so" if able else "no"
    keys = _WITH.get(kind, {})
    return next((words for words, more in keys.items() if verb in _entry({**plain, **more})), "no")


def _point(kind: str, feature: str) -> str:
    """A cell: whether a kind does what a point of the contract asks for."""
    return CANNOT[kind].get(feature) or _ARGUED.get((kind, feature), "yes")


def _backend(kind: str) -> Backend:
    return "vllm" if kind == "vllm here" else next(b for b in get_args(Backend) if b == kind)


def _rows() -> Iterator[list[str]]:
    columns = list(PLAIN)
    yield ["", *(_TITLES.get(kind, f"`{kind}`") for kind in columns)]
    yield ["started by keepwarm", *("no" if "url" in PLAIN[k] else "yes" for k in columns)]
    for verb in get_args(Verb):
        yield [f"`{verb}`", *(_verb(kind, verb) for kind in columns)]
    for feature, words in FEATURES.items():
        yield [words, *(_point(kind, feature) for kind in columns)]


def tables() -> str:
    """What stands between the two marks of the page."""
    kinds = [["`backend`", "what runs the model"]]
    kinds += [[f"`{name}`", kind.what] for name, kind in KINDS.items()]
    return f"{BEGIN}\n{_table(kinds)}\n{_table(list(_rows()))}{END}"


def _table(rows: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |\n" for row in rows)
    return f"{head}|{'---|' * len(rows[0])}\n{''.join(rest)}"


def written(page: str) -> str:
    """The page with the tables of now."""
    made = tables()
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, page, flags=re.DOTALL)


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
