"""The instruments: what each metric is called, what it counts, and by which attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from shim.keeper.metrics.books_read import Reading
from shim.keeper.shell.history import EvictStory, LoadStory
from shim.keeper.shell.stories import DeathStory, DenialStory, RequestStory, Story
from traces import names

SECONDS: Final = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
FIRST: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
)  # fmt: skip
FURTHER: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
)
TOKENS: Final = (
    1,
    4,
    16,
    64,
    256,
    1024,
    4096,
    16384,
    65536,
    262144,
    1048576,
    4194304,
    16777216,
    67108864,
)
"""The bounds that the conventions advise for each."""

Rows = Iterator[Observation]


class Instruments:
    """Counts what ended, and shows the books as they were last read.

    Args:
        meter: makes the instruments.
        fresh: reads the books, and has `record` called with all that ended.
    """

    def __init__(self, meter: Meter, fresh: Callable[[], Reading]) -> None:
        self._fresh = fresh
        self._now = Reading()

        def histogram(name: str, unit: str, what: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                name, unit, what, explicit_bucket_boundaries_advisory=bounds
            )

        self._duration = histogram(
            names.REQUEST_DURATION,
            "s",
            "From asking for a model to the end of the answer.",
            SECONDS,
        )
        self._first = histogram(
            names.TTFT, "s", "From asking for a model to the first token.", FIRST
        )
        self._each = histogram(names.TPOT, "s", "For each further token.", FURTHER)
        self._tokens = histogram(
            names.USAGE, "{token}", "Tokens of prompts (input) and of answers (output).", TOKENS
        )
        self._queue = histogram(
            names.QUEUE_DURATION, "s", "From asking for a model to being granted it.", SECONDS
        )
        self._loads = histogram(
            names.LOAD_DURATION, "s", "Loads of models, by where the file came from.", SECONDS
        )
        counter = meter.create_counter
        self._evictions = counter(names.EVICTIONS, "{eviction}", "Engines that left.")
        self._denials = counter(names.DENIALS, "{request}", "Requests that got no model.")
        self._deaths = counter(names.DEATHS, "{engine}", "Engines that ended by themselves.")
        self._observe(meter)

    def record(self, story: Story) -> None:
        """Count what ended."""
        match story:
            case RequestStory():
                self._request(story)
            case LoadStory():
                attributes = {names.MODEL: story.model, names.STORAGE: story.storage or "unknown"}
                if story.error:
                    attributes[names.ERROR_TYPE] = "LoadFailed"
                self._loads.record((story.end_ns - story.start_ns) / 1e9, attributes)
            case EvictStory():
                forced = story.reason.startswith("evicted for ")
                why = "for another model" if forced else "idle or asked for"
                self._evictions.add(1, {names.MODEL: story.model, names.REASON: why})
            case DenialStory():
                told = {names.REQUEST_MODEL: story.model, names.ERROR_TYPE: story.error}
                self._denials.add(1, told)
            case DeathStory():
                self._deaths.add(1, {names.MODEL: story.model, names.ERROR_TYPE: story.error})

    def _request(self, story: RequestStory) -> None:
        attributes = {
            names.OPERATION: story.operation,
            names.PROVIDER: story.engine,
            names.REQUEST_MODEL: story.model,
        }
        told = {**attributes, names.ERROR_TYPE: story.error} if story.error else attributes
        self._duration.record((story.end_ns - story.arrived_ns) / 1e9, told)
        self._queue.record((story.granted_ns - story.arrived_ns) / 1e9, attributes)
        if story.first_token_ns is not None and not story.error:
            self._first.record((story.first_token_ns - story.arrived_ns) / 1e9, attributes)
            further = (story.output_tokens or 0) - 1
            if further > 0:
                each_s = (story.end_ns - story.first_token_ns) / 1e9 / further
                self._each.record(each_s, attributes)
        counted = (("input", story.prompt_tokens), ("output", story.output_tokens))
        for kind, tokens in counted:
            if tokens is not None:
                self._tokens.record(tokens, {**attributes, names.USAGE_KIND: kind})

    def _observe(self, meter: Meter) -> None:
        """Make the instruments that are read off the books."""

        def gauge(name: str, unit: str, what: str, rows: Callable[[Reading], Rows]) -> None:
            meter.create_observable_gauge(name, [lambda _: rows(self._now)], unit, what)

        def resident(_: CallbackOptions) -> Rows:
            # The instruments are asked in the order in which they were made, and this is the first.
            self._now = self._fresh()
            return _resident(self._now)

        meter.create_observable_gauge(
            names.MODEL_BYTES, [resident], "By", "Bytes booked for a model."
        )
        gauge(names.LIMIT_BYTES, "By", "Bytes that models may take.", _of_devices("ceiling_bytes"))
        gauge(names.RESERVED_BYTES, "By", "Booked by all models.", _of_devices("reserved_bytes"))
        gauge(
            names.PROTECTED_BYTES, "By", "No eviction frees them.", _of_devices("protected_bytes")
        )
        gauge(names.BOOKABLE_BYTES, "By", "Bytes not booked yet.", _of_devices("free_bytes"))
        gauge(names.FREE_BYTES, "By", "Bytes that no program uses.", _free)
        gauge(names.LOW_MEMORY, "1", "1: less is free than the reserve.", _of_devices("low_memory"))
        gauge(names.QUEUE_DEPTH, "{request}", "Requests that wait.", _waiting)
        gauge(names.QUEUE_AGE, "s", "How long the oldest of them waits.", _ages)
        gauge(names.BUSY_SLOTS, "{slot}", "Slots that requests hold.", _busy)
        meter.create_observable_counter(
            names.FAULTS, [lambda _: _faults(self._now)], "{fault}", "Failures inside the keeper."
        )


def _of_devices(key: str) -> Callable[[Reading], Rows]:
    return lambda now: (
        Observation(int(row[key]), {names.DEVICE: row["device"]}) for row in now.devices
    )


def _resident(now: Reading) -> Rows:
    for (device, model), amount in now.resident_bytes.items():
        yield Observation(amount, {names.DEVICE: device, names.MODEL: model})


def _free(now: Reading) -> Rows:
    for device, amount in now.free_bytes.items():
        if amount is not None:
            yield Observation(amount, {names.DEVICE: device})


def _waiting(now: Reading) -> Rows:
    for model, depth in now.depth.items():
        yield Observation(depth, {names.REQUEST_MODEL: model})


def _ages(now: Reading) -> Rows:
    for model, age_s in now.age_s.items():
        yield Observation(age_s, {names.REQUEST_MODEL: model})


def _busy(now: Reading) -> Rows:
    for model, slots in now.busy.items():
        yield Observation(slots, {names.MODEL: model})


def _faults(now: Reading) -> Rows:
    for kind, count in now.faults.items():
        yield Observation(count, {names.FAULT_KIND: kind})
