"""Publishes the keeper's metrics as `[metrics]` asks, and follows it when it changes.

On the keeper's loop a story is put aside, and the books are read when an exporter asks. All else is done
in threads, so that an exporter that hangs, or a scraper, holds up no request.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from budget.errors import ConfigError
from shim.config.schema.sections import MetricsSection
from shim.keeper.metrics.books_read import Reading, read_books
from shim.keeper.shell.actions_out import Shell
from shim.keeper.shell.fault_counts import text_of
from shim.keeper.shell.stories import Story
from traces import names

LOG = logging.getLogger("keepwarm.keeper")

LOOK_EVERY_S: Final = 5.0
SHORTEST_S: Final = 1.0
"""The shortest interval between two pushes."""
READ_LIMIT_S: Final = 2.0
"""An exporter waits no longer for the books; then it gets those that were read before."""
CLOSE_LIMIT_S: Final = 2.0
"""How long the exporters may take to end; after that they are left behind."""
_HERE: Final = "shim.keeper.metrics"
_NOTHING: Final = MetricsSection()


class Publishing:
    """Off until `look` finds that `[metrics]` asks for something.

    Args:
        shell: tells what ended, and has the books.
        free_bytes: what no program uses, by device, as last measured.
        section: returns the `[metrics]` in force.
    """

    def __init__(
        self,
        shell: Shell,
        free_bytes: Callable[[], Mapping[str, int | None]],
        section: Callable[[], MetricsSection],
    ) -> None:
        self._shell = shell
        self._free_bytes = free_bytes
        self._section = section
        self._loop = asyncio.get_running_loop()
        self._follows = _NOTHING
        self._aside: deque[Story] = deque()
        self._counting = threading.Lock()
        self._reading = Reading()
        self._instruments: Any = None
        self._closers: list[Callable[[], None]] = []

    async def look(self) -> None:
        """Begin, end or change what is published, as the configuration says; count what ended.

        Raises:
            ConfigError: a package is missing, or the socket's path cannot be used.
            OSError: the port cannot be had.
        """
        section = self._section()
        if section != self._follows:
            await self.close()
            if section.prometheus is not None or section.otlp is not None:
                await asyncio.to_thread(self._begin, section)
                self._shell.stories.listeners.append(self._aside.append)
            self._follows = section
        elif self._aside:
            await asyncio.to_thread(self._count)

    async def begin(self) -> None:
        """The first look; a failure is noted, and `look` tries again."""
        try:
            await self.look()
        except Exception as error:
            self._shell.faults.note("metrics", "publishing metrics", error)

    async def close(self) -> None:
        """End what is published; an exporter that does not end is left behind."""
        self._shell.stories.leave(self._aside.append)
        self._follows = _NOTHING
        closers, self._closers = self._closers, []
        if closers:
            await asyncio.to_thread(_close_all, closers)
        self._instruments = None
        self._aside.clear()

    def _begin(self, section: MetricsSection) -> None:
        metrics, export, resources = (
            importlib.import_module(f"opentelemetry.sdk.{name}")
            for name in ("metrics", "metrics.export", "resources")
        )
        readers: list[Any] = []
        try:
            if section.prometheus is not None:
                scraping = _part("prometheus", f"{_HERE}.scraping")
                scrapes = scraping.Scrapes(section.prometheus)
                self._closers.append(scrapes.close)
                readers.append(scrapes.reader)
            if section.otlp is not None:
                exporter = _part("otlp", f"{_HERE}.pushing").PushedMetrics(section.otlp)
                interval_ms = max(SHORTEST_S, section.interval) * 1e3
                readers.append(export.PeriodicExportingMetricReader(exporter, interval_ms))
            version = importlib.metadata.version("keepwarm")
            about = {names.SERVICE_NAME: "keepwarm", names.SERVICE_VERSION: version}
            provider = metrics.MeterProvider(
                readers, resource=resources.Resource.create(about), shutdown_on_exit=False
            )
            self._closers.append(lambda: provider.shutdown(CLOSE_LIMIT_S * 1e3))
            meter = provider.get_meter("keepwarm", version, names.CONVENTIONS)
            make = importlib.import_module(f"{_HERE}.instruments").Instruments
            self._instruments = make(meter, self._fresh)
        except BaseException:
            closers, self._closers = self._closers, []
            _close_all(closers)
            raise

    def _fresh(self) -> Reading:
        """The books now, with all counted that ended; in an exporter's thread. Never raises."""
        answer: Future[Reading] = Future()

        def read() -> None:
            try:
                answer.set_result(read_books(self._shell, self._free_bytes()))
            except Exception as error:
                self._shell.faults.note("metrics", "reading the books", error)
                answer.cancel()

        try:
            self._loop.call_soon_threadsafe(read)
            self._reading = answer.result(READ_LIMIT_S)
        except BaseException as error:
            LOG.warning("metrics show the books as they were before: %s", text_of(error))
        self._count()
        return self._reading

    def _count(self) -> None:
        with self._counting:
            while self._aside and self._instruments is not None:
                self._instruments.record(self._aside.popleft())


def _part(key: str, module: str) -> Any:
    """The module that a key of `[metrics]` needs.

    Raises:
        ConfigError: a package under it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"[metrics] {key} needs a package that is not installed ({error.name}).",
            hint=f"pip install 'keepwarm[{key}]'",
        ) from error


def _close_all(closers: list[Callable[[], None]]) -> None:
    def close() -> None:
        for closer in closers:
            closer()

    ending = threading.Thread(target=close, name="keepwarm-metrics-end", daemon=True)
    ending.start()
    ending.join(CLOSE_LIMIT_S)
    if ending.is_alive():
        LOG.warning("an exporter of metrics did not end within %g s", CLOSE_LIMIT_S)
