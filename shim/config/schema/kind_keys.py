"""Which keys of a model hold for which kind of engine, and the keys that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, cast

from backends.kinds import CALLABLE, KINDS, Backend
from backends.server.command import mistakes
from backends.vllm.server_arguments import OWNED
from shim.config.schema.endpoint_values import first_url
from shim.config.schema.values import Span

DEFAULT_CONTEXT: Final = 4096
FLOAT_KV_TYPES: Final = frozenset({"f32", "f16", "bf16"})


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


TIMEOUT_KEYS: Final = _keys("first_token_timeout token_timeout answer_timeout")
FOLLOW_FILE_KEYS: Final = _keys("context n_batch n_ubatch")
"""Keys that follow the model's file where they are left out, so that a written default is another value."""
_ANYWHERE: Final = _keys("backend priority max_queue fallback") | TIMEOUT_KEYS
_HERE: Final = _keys("slots keep_alive pin threads")
_GGUF: Final = _keys(
    "role path hf context n_gpu_layers n_batch n_ubatch kv_type kv_type_k kv_type_v flash_attention repack "
    "swa_full mmproj draft_model lora warm_prompt engine_args llama_server"
)
_NEED_SERVER: Final = _keys("slots mmproj draft_model lora engine_args llama_server")
"""What llama-cpp-python's worker does not have of llama-server."""
_ENDPOINT: Final = _keys("role url endpoints model_id api_key_env ca_file connect_timeout")
_WORKER: Final = _keys("factory options bytes files python cwd env device can")
_VLLM: Final = _keys("role path context bytes python env device engine_args sleep")
_SERVER: Final = _keys("command ready can stop_signal model_id bytes files cwd env device")
_FOLDER: Final = "a model folder in Hugging Face form, or the url of a server"
_NO_GGUF: Final = (_WORKER | _VLLM | _SERVER) - _GGUF - _ENDPOINT
_BY_KIND: Final[Mapping[Backend, frozenset[str]]] = {
    "llama.cpp": _ANYWHERE | _HERE | _GGUF,
    "llama-cpp-python": (_ANYWHERE | _HERE | _GGUF) - _NEED_SERVER,
    "python": _ANYWHERE | _HERE | _WORKER,
    "vllm": _ANYWHERE | _HERE | _VLLM,
    "server": _ANYWHERE | (_HERE - {"threads"}) | _SERVER,
}
"""The keys of the kinds that keepwarm starts."""

Conflict = tuple[str, str, str]
"""The key, what is wrong with it, and what is allowed."""


def allowed_kinds() -> str:
    """The kinds in words."""
    names = [f'"{name}"' for name in KINDS]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def kind_of(given: Mapping[str, object]) -> Backend:
    """The kind that some keys of a model mean; the default one where what is named is none."""
    named = given.get("backend")
    if isinstance(named, str):
        return cast("Backend", named) if named in KINDS else "llama.cpp"
    signs: tuple[tuple[str, Backend], ...] = (
        ("endpoints", "openai"),
        ("url", "openai"),
        ("factory", "python"),
        ("command", "server"),
    )
    return next((kind for name, kind in signs if name in given), "llama.cpp")


def keys_of(kind: Backend, *, remote: bool) -> frozenset[str]:
    """The keys that hold for a kind of engine, at an endpoint or here."""
    if kind == "ollama":
        return _ANYWHERE | _ENDPOINT | {"keep_alive"}
    return _ANYWHERE | _ENDPOINT if remote else _BY_KIND.get(kind, _ANYWHERE | _ENDPOINT)


def every_key() -> frozenset[str]:
    """All keys of all kinds."""
    return _ENDPOINT.union(*_BY_KIND.values())


def conflicts(given: Mapping[str, object]) -> Iterator[Conflict]:
    """Contradictions between the keys that were written, whether or not each alone is valid."""
    if "endpoints" in given:
        yield from _endpoint_conflicts(given)
        given = {**given, "url": given.get("url")}
    yield from _source_conflicts(given)
    yield from _foreign_keys(given)
    yield from _refused_arguments(given)
    yield from _open_names(given)
    if "url" not in given:
        yield from _local_conflicts(given)


def _endpoint_conflicts(given: Mapping[str, object]) -> Iterator[Conflict]:
    url = given.get("url")
    # A checked entry has the first address as its url.
    if url is not None and url != first_url(given):
        yield "endpoints", "url and endpoints are given", "one of the two"


def _source_conflicts(given: Mapping[str, object]) -> Iterator[Conflict]:
    kind = kind_of(given)
    if kind == "python":
        if "factory" not in given:
            yield "factory", 'backend = "python" without a factory', '"module:Name"'
        told = given.get("can", ())
        able = [told] if isinstance(told, str) else told if isinstance(told, list | tuple) else ()
        if wrong := [str(verb) for verb in able if str(verb) not in CALLABLE]:
            found = f"{', '.join(wrong)}, which no Python model does"
            yield "can", found, f"some of {', '.join(sorted(CALLABLE - {'call'}))}"
        return
    if kind == "server":
        if "command" not in given:
            yield "command", 'backend = "server" without a command', "a list of texts"
        return
    sources = [name for name in ("path", "hf", "url") if name in given]
    one = "exactly one of path, hf and url"
    if len(sources) > 1:
        yield sources[-1], f"{' and '.join(sources)} are given", one
    elif kind == "vllm" and sources not in (["url"], ["path"]):
        yield "path", 'backend = "vllm" without path and url', _FOLDER
    elif kind == "vllm" and str(given.get("path", "")).lower().endswith(".gguf"):
        yield "path", 'a GGUF file with backend = "vllm"', _FOLDER
    elif kind in ("openai", "ollama") and sources != ["url"]:
        yield "url", f'backend = "{kind}" without a url', "the endpoint's address"
    elif not sources:
        known = "path, hf, url or endpoints, factory (your own Python model), or command (a server)"
        yield "path", "nothing that says what runs the model", f"one of {known}"


def _foreign_keys(given: Mapping[str, object]) -> Iterator[Conflict]:
    """The keys that hold for another kind only."""
    kind, remote = kind_of(given), "url" in given
    sources = {"path", "hf"} if remote else set()
    for name in sorted((set(given) & every_key()) - keys_of(kind, remote=remote) - sources):
        owners = [f'backend = "{other}"' for other, keys in _BY_KIND.items() if name in keys]
        where = " or ".join(owners) or "endpoints (with a url)"
        if kind in ("python", "server") or (kind == "vllm" and not remote):
            found = f'backend = "{kind}", which has no such key; it is for {where}'
            yield name, found, "leave it out"
        elif name in _NO_GGUF:
            found = "the model is remote (it has a url)" if remote else "the model is a GGUF file"
            yield name, f"{found}; this key is for {where}", "leave it out"
        elif remote:
            yield (
                name,
                "the model is remote (it has a url) and keepwarm does not run it",
                "leave it out, or give path or hf instead of url",
            )
        else:
            yield name, "the model is local (it has no url)", "leave it out, or give url"


def _refused_arguments(given: Mapping[str, object]) -> Iterator[Conflict]:
    """Arguments of vLLM that keepwarm decides."""
    arguments = given.get("engine_args")
    if kind_of(given) != "vllm" or not isinstance(arguments, list | tuple):
        return
    names = (str(word).partition("=")[0].replace("_", "-") for word in arguments)
    if refused := sorted({name for name in names if name in OWNED}):
        found = f"{', '.join(refused)}, which keepwarm decides for vLLM"
        yield "engine_args", found, "other arguments of vLLM's API server; see the model's own keys"


def _open_names(given: Mapping[str, object]) -> Iterator[Conflict]:
    """Names in braces that a server's command cannot be given."""
    command, env = given.get("command"), given.get("env", {})
    if kind_of(given) != "server" or not isinstance(command, list | tuple):
        return
    texts = [word for word in command if isinstance(word, str)]
    named = {k: v for k, v in env.items() if isinstance(v, str)} if isinstance(env, Mapping) else {}
    yield from mistakes(texts, named, has_files=bool(given.get("files")))


def _local_conflicts(given: Mapping[str, object]) -> Iterator[Conflict]:
    value_type = given.get("kv_type_v") or given.get("kv_type") or "f16"
    quantized = isinstance(value_type, str) and value_type not in FLOAT_KV_TYPES
    if quantized and given.get("flash_attention") == "off":
        yield (
            "flash_attention",
            f'"off" with values of type {value_type}; a quantized V cache needs flash attention',
            '"on" or "auto", or kv_type_v = "f16"',
        )
    if given.get("pin") is True and given.get("keep_alive") in (0, "0", "0s"):
        yield "keep_alive", "0 (leave at once) on a pinned model", "-1, or pin = false"
    context, slots = given.get("context", DEFAULT_CONTEXT), given.get("slots", 1)
    least, most = _of(context, "min"), _of(slots, "preferred")
    if least is not None and most is not None and 0 < least < most:
        yield "context", f"{least} tokens for {most} slots", "at least one token a slot"
    batch, ubatch = given.get("n_batch", 2048), given.get("n_ubatch", 512)
    if isinstance(batch, int) and isinstance(ubatch, int) and 0 < batch < ubatch:
        yield "n_ubatch", f"{ubatch} with n_batch = {batch}", "at most n_batch"


def _of(value: object, end: Literal["min", "preferred"]) -> int | None:
    """One end of a number or a range as it was written; None where it is neither."""
    if isinstance(value, Span):
        return value.least if end == "min" else int(value)
    if isinstance(value, Mapping):
        value = value.get(end)
    return value if type(value) is int else None
