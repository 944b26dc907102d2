"""A scraper, as Prometheus is one: it asks over HTTP and reads the text format with the official parser."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from shim import Shim
from tests.processes import wait_until

LIMIT_S = 60.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(str(self._path))


@dataclass
class Samples:
    """What one scrape found."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def of(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels (0.0 where there is none)."""
        wanted = labels.items()
        return sum(
            value for (found, has), value in self.values.items() if found == name and wanted <= has
        )

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self.values}


def read(connection: http.client.HTTPConnection) -> Samples:
    """One scrape."""
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == http.HTTPStatus.OK, text
    return Samples(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


@dataclass
class Watched:
    """A Shim, and where its keeper's metrics are."""

    shim: Shim
    place: Path

    def settle(self) -> None:
        """Wait until the keeper knows that no request is under way: the end of one is told, not asked."""

        def settled() -> bool:
            return not any(row["leases"] for row in self.shim.status()["engines"])

        assert wait_until(settled, LIMIT_S)

    def scrape(self) -> Samples:
        """What Prometheus would read once all is settled."""
        self.settle()
        return read(UnixConnection(self.place))

    def chat(self, model: str) -> str:
        """One request."""
        return self.shim.chat(model, [{"role": "user", "content": "hello"}]).content
