"""`events verify`: users' events against their rows, and the stream against the table; every fault is named.

Nothing is changed. It may run while everything else does: a user is read as of one moment, and what was on its way to
the stream is looked for once more.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from nats.aio.client import Client

from adapters.histories import (
    Compared,
    Placed,
    announced_among,
    announced_page,
    compare_page,
    events_counted,
    placed_at,
    placed_by_id,
    time_of,
    users_without_row,
)
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.refill import RETENTION, last_position
from adapters.stream_reader import EventsReader, Standing, stream_state
from adapters.streams import EVENTS_STREAM
from contracts.events import subject_of
from domain.positions import Positions

FAULTS_MAX = 1000
"""So many are named; the others are counted."""
POSITIONS_MAX = 10_000
LATE = timedelta(minutes=5)
"""Clocks of two servers, and an event that is about to be too old, make no fault."""

Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it must be; it quotes nothing personal."""

    kind: str
    says: str
    user_id: UUID | None = None


@dataclass(slots=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    users: int = 0
    events: int = 0
    messages: int = 0
    faults_counted: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, kind: str, says: str, user_id: UUID | None = None) -> None:
        """Another fault."""
        self.faults_counted += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(Fault(kind, says, user_id))


async def verify_rows(
    database: Database, personal: PersonalData, verified: Verified, *, from_position: int, tell: Tell
) -> None:
    """Fold the events of every user that has one from a position on, and compare with the row."""
    async with database.connection() as connection:
        total, _ = await events_counted(connection)
        for user_id in await users_without_row(connection, from_position=from_position, users_max=FAULTS_MAX):
            verified.add("no row", "has events and no row", user_id)
    after: UUID | None = None
    while page := await compare_page(database, personal, after, from_position=from_position):
        for compared in page:
            _judge(compared, verified)
        after = page[-1].user_id
        tell(verified.users, max(total, verified.users))
        await asyncio.sleep(0)


def _judge(compared: Compared, verified: Verified) -> None:
    verified.users += 1
    verified.events += compared.events
    for fault in compared.faults:
        verified.add("history", fault, compared.user_id)
    if not compared.events:
        verified.add("history", "has a row and no event", compared.user_id)
    elif compared.differs:
        verified.add("row", f"the row says otherwise than the events: {', '.join(compared.differs)}", compared.user_id)


class StreamVerification:
    """Reads the stream once: which events stand there, each once, none before its user's earlier one, none foreign."""

    def __init__(self, database: Database, client: Client, verified: Verified, *, from_position: int) -> None:
        self._database = database
        self._client = client
        self._verified = verified
        self._from = from_position
        self._seen = Positions()
        self._early = Positions()
        """Those that stood there before the event of their user that comes before them in the table."""

    async def run(self, tell: Tell) -> None:
        """All of it. What was announced when it began must stand there when it ends."""
        if await stream_state(self._client.jetstream(), EVENTS_STREAM) is None:
            self._verified.add("stream", "there is no stream USER_EVENTS")
            return
        since = datetime.now(UTC) - RETENTION + LATE
        async with self._database.connection() as connection:
            end = await last_position(connection)
            began = await time_of(connection, self._from) if self._from else None
        reader = EventsReader(self._client, since=began and began - LATE)
        try:
            await self._read(reader, tell)
            missing = await self._not_seen(end, since)
            if missing:  # they may have been announced behind what was read
                await self._read(reader, tell)
                await self._report_missing(missing, since)
        finally:
            await reader.close()
        await self._report_order()

    async def _read(self, reader: EventsReader, tell: Tell) -> None:
        """One batch is looked up while the next one comes."""
        batch = await reader.batch()
        while batch:
            async with asyncio.TaskGroup() as both:
                coming = both.create_task(reader.batch())
                both.create_task(self._look_up(batch))
            tell(self._verified.messages, self._verified.messages + len(coming.result()) + reader.left)
            batch = coming.result()

    async def _look_up(self, batch: Sequence[Standing]) -> None:
        ids = [_id_of(standing) for standing in batch]
        async with self._database.connection() as connection:
            known = await placed_by_id(connection, [id for id in ids if id is not None])
        for standing, id in zip(batch, ids, strict=True):
            self._take(standing, known.get(id) if id else None)
        self._verified.messages += len(batch)

    def _take(self, standing: Standing, event: Placed | None) -> None:
        if event is None or standing.subject != subject_of(event.type, event.user_id):
            self._verified.add("foreign", f"message {standing.sequence} of the stream is none of our events")
        elif event.position >= self._from:
            if not self._seen.add(event.position):
                self._verified.add("twice", f"version {event.version} stands on the stream twice", event.user_id)
            elif event.before is not None and event.before not in self._seen:
                self._early.add(event.position)

    async def _not_seen(self, end: int, since: datetime) -> list[int]:
        """What must stand there and was not met; the first so many of it."""
        missing: list[int] = []
        after = max(self._from - 1, 0)
        while len(missing) < POSITIONS_MAX:
            async with self._database.connection() as connection:
                page = await announced_page(connection, after, up_to=end, since=since, events_max=POSITIONS_MAX)
            if not page:
                break
            missing += [position for position in page if position not in self._seen]
            after = page[-1]
        return missing

    async def _report_missing(self, missing: list[int], since: datetime) -> None:
        async with self._database.connection() as connection:
            left = await announced_among(
                connection, [position for position in missing if position not in self._seen], since=since
            )
            for event in await placed_at(connection, left):
                self._verified.add("missing", f"version {event.version} is not on the stream", event.user_id)

    async def _report_order(self) -> None:
        async with self._database.connection() as connection:
            chunk: list[int] = []
            for position in self._early:
                chunk.append(position)
                if len(chunk) == POSITIONS_MAX:
                    await self._judge_order(connection, chunk)
                    chunk = []
            await self._judge_order(connection, chunk)

    async def _judge_order(self, connection: Connection, positions: Iterable[int]) -> None:
        for event in await placed_at(connection, list(positions)):
            if event.before is not None and event.before in self._seen:
                self._verified.add(
                    "order", f"version {event.version} stands on the stream before the one before it", event.user_id
                )


def _id_of(standing: Standing) -> UUID | None:
    try:
        return UUID(standing.message_id or "")
    except ValueError:
        return None
