"""What the overview shows: looked at every few seconds, the last quarter of an hour kept in memory."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import TypeVar

from adapters.bus_client import BusFailure
from adapters.operator_bus import Consumer, OperatorBus, Process
from adapters.smtp import Mailer
from adapters.streams import EVENT_GROUPS, EVENTS_STREAM, LETTERS_STREAM, TAKING_GROUPS
from contracts.health import Check, Health
from handlers.measures import MAIL_S, mail_answers

WATCHED_S = 2.0
UNWATCHED_S = 10.0
"""Nobody looks: seldom, so that a chart is not empty when somebody comes."""
READER_S = 60.0
POINTS_MAX = 450


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at everything; None where nobody answered."""

    at: datetime
    monotonic: float
    health: Health
    consumers: Sequence[Consumer] | None
    processes: Sequence[Process] | None
    streams: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class Point:
    """What a chart draws of the time between two looks; None where one of them saw nothing."""

    at: float
    requests_s: float | None
    errors_s: float | None
    deliveries_s: float | None
    redelivered: int | None
    letters: int | None
    waiting: dict[str, int | None]


class Figures:
    """Looks for ever; readers take what was seen last."""

    def __init__(self, bus: OperatorBus, check: Callable[[], Awaitable[Health]], mailer: Mailer) -> None:
        self._bus = bus
        self._check = check
        self._mailer = mailer
        self._mail: Check | None = None
        self._read_at = float("-inf")
        self._looks_soon = asyncio.Event()
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self.latest: Sample | None = None

    def read(self) -> tuple[Sample | None, Sequence[Point]]:
        """The last look, and the points before it; while somebody reads, looks come often."""
        self._read_at = time.monotonic()
        self._looks_soon.set()
        return self.latest, self._points

    async def run(self) -> None:
        while True:
            sample = await self._look()
            if self.latest is not None:
                self._points.append(_between(self.latest, sample))
            self.latest = sample
            await asyncio.sleep(WATCHED_S)
            if time.monotonic() - self._read_at > READER_S:
                self._looks_soon.clear()
                try:
                    async with asyncio.timeout(UNWATCHED_S - WATCHED_S):
                        await self._looks_soon.wait()
                except TimeoutError:
                    continue

    async def watch_mail(self) -> None:
        """Ask the mail server for ever: seldom, and as long as a mail server may take to answer."""
        while True:
            began = time.perf_counter()
            is_there = await mail_answers(self._mailer)
            self._mail = Check(
                name="smtp",
                status="healthy" if is_there else "degraded",
                response_time_ms=round((time.perf_counter() - began) * 1000, 1),
                message="ok" if is_there else "not available",
            )
            await asyncio.sleep(MAIL_S)

    async def _check_all(self) -> Health:
        """With the mail server, which no request waits for, and without which no mail goes out."""
        health = await self._check()
        if self._mail is None:
            return health
        status = self._mail.status if health.status == "healthy" else health.status
        return health.model_copy(update={"checks": [*health.checks, self._mail], "status": status})

    async def _look(self) -> Sample:
        health, consumers, processes, streams = await asyncio.gather(
            self._check_all(),
            _or_none(self._bus.consumers(TAKING_GROUPS)),
            _or_none(self._bus.processes()),
            _or_none(self._bus.streams()),
        )
        return Sample(datetime.now(UTC), time.monotonic(), health, consumers, processes, streams)


Seen = TypeVar("Seen")


async def _or_none(asked: Awaitable[Seen]) -> Seen | None:
    try:
        return await asked
    except BusFailure:
        return None


def _between(before: Sample, now: Sample) -> Point:
    passed_s = max(now.monotonic - before.monotonic, 0.001)

    def rate(count: int | None) -> float | None:
        return None if count is None else round(count / passed_s, 2)

    consumers = now.consumers
    return Point(
        at=round(now.at.timestamp(), 1),
        requests_s=rate(_grown(before.processes, now.processes, attrgetter("requests"))),
        errors_s=rate(_grown(before.processes, now.processes, attrgetter("errors"))),
        deliveries_s=rate(_delivered(before.consumers, consumers)),
        redelivered=None if consumers is None else sum(one.redelivered for one in consumers),
        letters=_stream_grown(before, now, LETTERS_STREAM),
        waiting={group: waiting_of(group, consumers) for group in EVENT_GROUPS},
    )


def waiting_of(group: str, consumers: Sequence[Consumer] | None) -> int | None:
    """Events that a group has not dealt with: not handed out, in work, or waiting out a pause."""
    if consumers is None:
        return None
    return sum(one.waiting + one.unacked for one in consumers if one.group == group)


def _grown(
    before: Sequence[Process] | None, now: Sequence[Process] | None, count: Callable[[Process], int]
) -> int | None:
    """By process: one that began anew counts from nothing, and one that came late is not all of this moment's."""
    if before is None or now is None:
        return None
    seen = {one.id: count(one) for one in before}
    return sum(max(0, count(one) - seen[one.id]) for one in now if one.id in seen)


def _delivered(before: Sequence[Consumer] | None, now: Sequence[Consumer] | None) -> int | None:
    if before is None or now is None:
        return None
    seen = {one.name: one.delivered for one in before}
    return sum(max(0, one.delivered - seen.get(one.name, one.delivered)) for one in now)


def _stream_grown(before: Sample, now: Sample, stream: str) -> int | None:
    if before.streams is None or now.streams is None:
        return None
    return max(0, now.streams[stream] - before.streams[stream])


def events_announced(sample: Sample) -> int | None:
    """The last sequence of the stream of events."""
    return None if sample.streams is None else sample.streams[EVENTS_STREAM]
