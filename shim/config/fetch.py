"""Files named `hf = "owner/repo:file"`: downloaded once into the Hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget.errors import ConfigError, EndpointError, EndpointUnavailable, LoadFailed
from shim.config.problems import show_value

_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.ASCII)
MAX_SHARDS = 1000

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, its bytes so far, and its bytes in all where they are known."""


Download = Callable[..., object]
"""Downloads one file of a repository and returns its path, as `huggingface_hub.hf_hub_download` does."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository on the Hub."""

    repo: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}{'@' + self.revision if self.revision else ''}:{self.name}"

    def shards(self) -> tuple[str, ...]:
        """The names of all the files that belong to this one, in order; itself when it is whole."""
        match = _SHARD.fullmatch(self.name)
        if match is None:
            return (self.name,)
        count = int(match["count"])
        if not 1 <= count <= MAX_SHARDS or int(match["index"]) != 1:
            raise ConfigError(
                f"hf: found {show_value(self.name)}; allowed: the first shard (-00001-of-N) of at "
                f"most {MAX_SHARDS}.",
            )
        return tuple(f"{match['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1))


def parse_hub_file(text: str) -> HubFile:
    """The parts of "owner/repo:file" or "owner/repo@revision:file".

    Raises:
        ConfigError: it is neither.
    """
    place, colon, name = text.partition(":")
    repo, _, revision = place.partition("@")
    if not colon or not name or repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f'hf: found {show_value(text)}; allowed: "owner/repo:file.gguf".')
    return HubFile(repo, name, revision or None)


def fetch_hub_file(
    hf: str,
    *,
    on_progress: Progress | None = None,
    offline: bool = False,
    download: Download | None = None,
) -> Path:
    """The local path of a Hub file (its first shard), downloaded when the cache lacks it.

    Args:
        hf: "owner/repo:file" or "owner/repo@revision:file".
        on_progress: called with each file's progress.
        offline: look into the cache only. The Hub library's own HF_HUB_OFFLINE holds as well.
        download: replaces `huggingface_hub.hf_hub_download`.

    Raises:
        ConfigError: there is no such repository, revision or file, or no right to it.
        EndpointUnavailable: the cache lacks the file and the Hub cannot, or must not, be reached.
        EndpointError: the Hub answered with another error.
        LoadFailed: the file cannot be written here.
    """
    file = parse_hub_file(hf)
    fetch = download or _hub_download()
    paths = []
    for name in file.shards():
        options: dict[str, Any] = {"local_files_only": True} if offline else {}
        if on_progress is not None:
            options["tqdm_class"] = _progress_class(name, on_progress)
        paths.append(_fetch_one(fetch, file, name, options))
    return paths[0]


def _hub_download() -> Download:
    # The Hub library takes a quarter of a second to import, and most runs need no download.
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    return hf_hub_download


def _fetch_one(download: Download, file: HubFile, name: str, options: Mapping[str, Any]) -> Path:
    try:
        return Path(str(download(file.repo, name, revision=file.revision, **options)))
    except Exception as error:
        raise _typed(error, HubFile(file.repo, name, file.revision)) from error


def _typed(error: Exception, file: HubFile) -> Exception:
    """The `KeepwarmError` for a Hub library's error, found by its class name, so that fakes need no Hub."""
    names = {kind.__name__ for kind in type(error).__mro__}
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return EndpointUnavailable(
            f"{file} is not in the Hub cache and the Hub cannot be reached.",
            hint="Unset HF_HUB_OFFLINE or connect, run `keepwarm load` once, or use path.",
            file=str(file),
        )
    if "GatedRepoError" in names:
        return ConfigError(
            f"{file}: the repository {file.repo} is gated.",
            hint="Accept its terms on the Hub and log in with `hf auth login`.",
            file=str(file),
        )
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        what = "revision" if "RevisionNotFoundError" in names else "repository"
        return ConfigError(
            f"{file}: the Hub has no such {what}, or it is private.",
            hint="Check the spelling; for a private one log in with `hf auth login`.",
            file=str(file),
        )
    if "EntryNotFoundError" in names:
        return ConfigError(
            f"{file}: {file.repo} has no file {show_value(file.name)}.",
            hint=f"See the Files tab of {file.repo} on the Hub.",
            file=str(file),
        )
    if names & {"HTTPError", "HfHubHTTPError"} and status is not None:
        return EndpointError(f"{file}: the Hub answered {status}.", status=status, file=str(file))
    if names & {"ConnectionError", "TimeoutException", "TransportError", "TimeoutError"}:
        return EndpointUnavailable(
            f"{file}: the Hub cannot be reached ({type(error).__name__}).",
            hint="Check the network; what was downloaded is kept.",
            file=str(file),
        )
    return LoadFailed(
        f"{file} could not be fetched: {type(error).__name__}: {error}.",
        hint="Check free disk space and the rights of the Hub cache (HF_HOME).",
        file=str(file),
    )


def _progress_class(name: str, on_progress: Progress) -> type[Any]:
    # tqdm comes with the Hub library and is only needed beside it.
    from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415

    class Reporter(tqdm):  # type: ignore[type-arg,unused-ignore,misc]
        """A tqdm that draws nothing, and calls `on_progress` instead."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._done = int(kwargs.get("initial") or 0)
            self._all = kwargs.get("total")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            """Count `n` more bytes."""
            self._done += int(n or 0)
            on_progress(name, self._done, self._all)
            return None

    return Reporter
