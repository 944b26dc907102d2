"""Files from the Hub, with a fake in place of the network."""

from pathlib import Path
from typing import Any

import pytest

from budget.errors import ConfigError, EndpointError, EndpointUnavailable, KeepwarmError, LoadFailed
from shim.config import fetch_hub_file, parse_hub_file


class FakeHub:
    """Answers like `hf_hub_download`, or raises what it was given; remembers the calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[str, str, str | None, dict[str, Any]]] = []

    def __call__(
        self, repo_id: str, filename: str, *, revision: str | None, **options: Any
    ) -> object:
        """The path that the file would have."""
        self.calls.append((repo_id, filename, revision, options))
        if self.error is not None:
            raise self.error
        if "tqdm_class" in options:
            bar = options["tqdm_class"](total=10, initial=2)
            bar.update(3)
        return f"/cache/{repo_id}/{filename}"


def test_one_file_is_fetched_from_its_repository_and_revision() -> None:
    """The parts of the text go where they belong and the local path comes back."""
    hub = FakeHub()
    assert fetch_hub_file("o/r@v1:sub/m.gguf", download=hub) == Path("/cache/o/r/sub/m.gguf")
    assert hub.calls == [("o/r", "sub/m.gguf", "v1", {})]


def test_all_shards_are_fetched_and_the_first_is_named() -> None:
    """A model in three files needs all three."""
    hub = FakeHub()
    path = fetch_hub_file("o/r:m-00001-of-00003.gguf", download=hub)
    assert path.name == "m-00001-of-00003.gguf"
    assert [call[1] for call in hub.calls] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_a_later_shard_is_refused() -> None:
    """Naming shard 2 is a mistake that is reported before a file is fetched."""
    hub = FakeHub()
    with pytest.raises(ConfigError, match="first shard"):
        fetch_hub_file("o/r:m-00002-of-00003.gguf", download=hub)
    assert hub.calls == []


def test_progress_is_reported_in_bytes() -> None:
    """The caller gets the file, its bytes so far and its bytes in all."""
    seen: list[tuple[str, int, int | None]] = []
    fetch_hub_file("o/r:m.gguf", download=FakeHub(), on_progress=lambda *a: seen.append(a))
    assert seen == [("m.gguf", 5, 10)]


def test_offline_looks_into_the_cache_only() -> None:
    """The wish not to touch the network reaches the Hub library."""
    hub = FakeHub()
    fetch_hub_file("o/r:m.gguf", download=hub, offline=True)
    assert hub.calls[0][3] == {"local_files_only": True}


def named(name: str, *bases: type[Exception], **attributes: object) -> Exception:
    """An exception of a class with the Hub library's name."""
    error: Exception = type(name, bases or (Exception,), {})("foreign words")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("foreign", "ours", "why"),
    [
        (named("LocalEntryNotFoundError", OSError), EndpointUnavailable, "HF_HUB_OFFLINE"),
        (named("OfflineModeIsEnabled", ConnectionError), EndpointUnavailable, "HF_HUB_OFFLINE"),
        (named("GatedRepoError"), ConfigError, "gated"),
        (named("RepositoryNotFoundError"), ConfigError, "no such repository"),
        (named("RevisionNotFoundError"), ConfigError, "no such revision"),
        (named("EntryNotFoundError"), ConfigError, "has no file"),
        (
            named("HTTPError", response=type("R", (), {"status_code": 503})()),
            EndpointError,
            "answered 503",
        ),
        (ConnectionError("refused"), EndpointUnavailable, "cannot be reached"),
        (OSError(28, "No space left on device"), LoadFailed, "No space left"),
    ],
)
def test_foreign_errors_become_ours(
    foreign: Exception, ours: type[KeepwarmError], why: str
) -> None:
    """Each says what happened and what to do, and keeps its cause."""
    with pytest.raises(ours, match=why) as caught:
        fetch_hub_file("o/r:m.gguf", download=FakeHub(foreign))
    assert caught.value.__cause__ is foreign


@pytest.mark.parametrize("text", ["m.gguf", "o/r", "o/r:", "o:m.gguf", "o/r/x:m.gguf", "/r:m.gguf"])
def test_what_is_no_hub_file_is_refused(text: str) -> None:
    """Anything but owner/repo:file."""
    with pytest.raises(ConfigError, match="owner/repo:file"):
        parse_hub_file(text)


def test_the_real_library_tells_a_missing_file_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty cache and no network allowed, the Hub library's own error is mapped."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EndpointUnavailable, match="not in the Hub cache"):
        fetch_hub_file("no-such-owner/no-such-repo:m.gguf", offline=True)
