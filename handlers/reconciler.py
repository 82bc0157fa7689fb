"""Compares streams and tables for ever, in the group `jobs`, and makes good what a stream has lost.

A stream that was made anew or put back to an older copy is told by a mark that is kept of it; what was announced since
the mark is looked for by samples. One process at a time looks at a stream; one that dies leaves it to the next.
"""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from adapters.postgres import Connection, Database
from adapters.refill import RETENTION, announced_at, announced_since, last_position
from adapters.settings import Settings
from adapters.stream_marks import (
    Loss,
    Mark,
    first_mark,
    give_back_mark,
    is_marked,
    lease_mark,
    move_mark,
    note_loss,
    note_refilled,
    note_refilled_to,
    watched_streams,
)
from adapters.stream_reader import StreamState, lost_among, message_id_at, stream_state
from adapters.streams import EVENTS_STREAM, LETTERS_STREAM, TAKING_GROUPS, provision
from adapters.telemetry import Metrics
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.refill import EventsRefill, LettersRefill

log = structlog.get_logger()

PERIOD_S = 5.0
REST = timedelta(seconds=3)
"""After a round nobody looks for so long, however many processes there are."""
SAMPLE_MAX = 100
"""So many users are looked for in a round: a loss of more events in a row than one in so many is always met."""
LATE = timedelta(hours=1)
"""What is about to be too old for the stream is not looked for."""
REFILL_S = 5.0
"""Below the lease: so long a round goes on making good."""
FULL_S = 0.2


class Reconciler:
    """Looks after the streams of events and letters."""

    def __init__(self, database: Database, js: JetStreamContext, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._js = js
        self._settings = settings
        self._metrics = metrics
        self._refills: dict[str, EventsRefill | LettersRefill] = {
            EVENTS_STREAM: EventsRefill(database, js),
            LETTERS_STREAM: LettersRefill(database, js),
        }

    async def run(self) -> None:
        """Look again and again; what is away is waited for."""
        while True:
            more = False
            for stream in self._refills:
                try:
                    more |= await self.look_at(stream)
                except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
                    log.warning("streams are not compared now", stream=stream, error=type(error).__name__)
            if not more:
                await asyncio.sleep(PERIOD_S * random.uniform(0.8, 1.2))

    async def look_at(self, stream: str) -> bool:
        """One round: compare, say what is lost, and put back as much of it as a round allows; True for more of it."""
        async with self._database.connection() as connection:
            for watched in await watched_streams(connection):
                self._metrics.stream_refilling.labels(watched.stream).set(watched.is_refilling)
            mark = await lease_mark(connection, stream)
            if mark is None and await is_marked(connection, stream):
                return False  # another process looks at it
        if mark is None:
            await self._begin(stream)
            return False
        more = await self._compare(mark)
        async with self._database.connection() as connection:
            await give_back_mark(connection, mark, rest=timedelta() if more else REST)
        return more

    async def _begin(self, stream: str) -> None:
        state = await self._state(stream)
        newest = await message_id_at(self._js, stream, state.last_sequence)
        async with self._database.connection() as connection:
            position = await last_position(connection)
            await first_mark(connection, stream, state, newest, compared_to=position)

    async def _compare(self, mark: Mark) -> bool:
        stream, state = mark.stream, await self._state(mark.stream)
        newest = await message_id_at(self._js, stream, state.last_sequence)
        at_mark = await message_id_at(self._js, stream, mark.last_sequence)
        loss = mark.loss(state, at_mark)
        compared_to = mark.compared_to
        if loss is None and mark.lost_what is None and stream == EVENTS_STREAM:
            loss, compared_to = await self._sample(0 if mark.is_passed(state) else mark.compared_to)
        async with self._database.connection() as connection:
            if loss is not None:
                await note_loss(connection, mark, state, newest, loss)
                self._report(stream, loss)
            else:
                await move_mark(connection, mark, state, newest, compared_to=compared_to)
        if loss is None and mark.lost_what is None:
            return False
        return not await self._make_good(mark, after=None if loss is not None else mark.refilled_to)

    def _report(self, stream: str, loss: Loss) -> None:
        self._metrics.stream_losses.labels(stream, loss).inc()
        self._metrics.stream_refilling.labels(stream).set(1)
        log.error("a stream has lost messages; they are put back from the tables", stream=stream, what=loss)

    async def _state(self, stream: str) -> StreamState:
        """The stream as it is; it is made where it is gone, with the places of all groups."""
        state = await stream_state(self._js, stream)
        if state is None:
            await provision(self._js, self._settings, TAKING_GROUPS)
            state = await stream_state(self._js, stream)
        if state is None:
            raise Unavailable
        return state

    async def _sample(self, position: int) -> tuple[Loss | None, int]:
        """Look for some of what was announced behind a position; up to which one that was."""
        since = datetime.now(UTC) - RETENTION + LATE
        async with self._database.connection() as connection:
            heads, end = await announced_since(connection, position, since=since, users_max=SAMPLE_MAX)
        lost = await lost_among(self._js, heads)
        if lost:  # once more: a user may have been erased under our eyes
            async with self._database.connection() as connection:
                heads = await announced_at(connection, [head.position for head in lost], since=since)
            lost = await lost_among(self._js, heads)
        return ("lacks what was announced" if lost else None), end

    async def _make_good(self, mark: Mark, *, after: UUID | None) -> bool:
        """Put back behind a user or a letter, as far as a round goes; True when all is."""

        async def keep(connection: Connection, to: UUID, count: int) -> None:
            await note_refilled_to(connection, mark, to, count)

        until = time.monotonic() + REFILL_S
        while time.monotonic() < until:
            step = await self._refills[mark.stream].page(after, keep)
            if step is None:
                await asyncio.sleep(FULL_S)
                continue
            self._metrics.stream_put_back.labels(mark.stream).inc(step.put_back)
            if step.to is None:
                await self._end(mark)
                return True
            after = step.to
        return False

    async def _end(self, mark: Mark) -> None:
        stream, state = mark.stream, await self._state(mark.stream)
        newest = await message_id_at(self._js, stream, state.last_sequence)
        async with self._database.transaction() as connection:
            if stream == EVENTS_STREAM:
                await move_mark(connection, mark, state, newest, compared_to=await last_position(connection))
            put_back = await note_refilled(connection, mark)
        self._metrics.stream_refilling.labels(stream).set(0)
        log.info("what a stream had lost is put back", stream=stream, count=put_back)
