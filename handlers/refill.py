"""Makes good what streams have lost: events user by user, through the outbox and its relays; letters one by one.

Each page is one transaction: a process that dies in it has done nothing, and one that dies behind it leaves rows of the
outbox, which any relay announces. What the stream holds is never announced again, so a page may be done twice.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from nats.js import JetStreamContext

from adapters.inbox import announce_again, announced_letters
from adapters.postgres import Connection, Database
from adapters.refill import RETENTION, Tail, count_missing, heads_page, outbox_is_full, put_back
from adapters.stream_reader import letters_missing, tails_of

log = structlog.get_logger()

USERS_MAX = 500
LETTERS_MAX = 500
WAITING_MAX = 5000
"""With so many events waiting no more are put back: what happens meanwhile is announced behind them."""

Keep = Callable[[Connection, UUID, int], Awaitable[None]]
"""Notes in a page's transaction how far it goes, and how much it has put back."""


@dataclass(frozen=True, slots=True)
class Step:
    """One page: behind whom the next one begins, None where there is none, and how much this one has put back."""

    to: UUID | None
    put_back: int
    users: int = 0
    foreign: int = 0
    """Users left alone: what stands last on their subjects is no event of theirs."""


async def nothing_kept(_: Connection, __: UUID, ___: int) -> None:
    """For whoever begins anew after a crash."""


class EventsRefill:
    """Puts announced events back that the stream has lost, as far as they are not too old for it."""

    def __init__(self, database: Database, js: JetStreamContext, *, from_position: int = 0) -> None:
        self._database = database
        self._js = js
        self._from = from_position

    async def page(self, after: UUID | None, keep: Keep = nothing_kept) -> Step | None:
        """The next users; None while so much waits for the relays that no more is to be put back."""
        async with self._database.connection() as connection:
            if await outbox_is_full(connection, WAITING_MAX):
                return None
        since = datetime.now(UTC) - RETENTION
        async with self._database.transaction() as connection:
            last, tails, foreign = await self._compare(connection, after, since, lock=True)
            if last is None:
                return Step(None, 0)
            count = await put_back(connection, tails, from_position=self._from, since=since)
            await keep(connection, last, count)
        for user_id in foreign:
            log.error("a message on a user's subject is no event of theirs", userId=str(user_id))
        return Step(last, count, len(tails) + len(foreign), len(foreign))

    async def look(self, after: UUID | None) -> Step:
        """What a page would put back; nothing is changed or locked."""
        since = datetime.now(UTC) - RETENTION
        async with self._database.connection() as connection:
            last, tails, foreign = await self._compare(connection, after, since, lock=False)
            count = await count_missing(connection, tails, from_position=self._from, since=since)
        return Step(last, count, len(tails) + len(foreign), len(foreign))

    async def _compare(
        self, connection: Connection, after: UUID | None, since: datetime, *, lock: bool
    ) -> tuple[UUID | None, list[Tail], list[UUID]]:
        """The last of the next users, None behind all; their tails; and those who have none of their own."""
        page = await heads_page(
            connection, after, from_position=self._from, since=since, users_max=USERS_MAX, lock=lock
        )
        tails, foreign = await tails_of(self._js, connection, page.heads)
        return page.last, tails, foreign


class LettersRefill:
    """Has letters announced again that their stream has lost; none that stands there."""

    def __init__(self, database: Database, js: JetStreamContext) -> None:
        self._database = database
        self._js = js

    async def page(self, after: UUID | None, keep: Keep = nothing_kept) -> Step | None:
        """The next letters in the order in which they were written."""
        since = datetime.now(UTC) - RETENTION
        async with self._database.transaction() as connection:
            letters = await announced_letters(connection, after, since=since, letters_max=LETTERS_MAX)
            if not letters:
                return Step(None, 0)
            missing = await letters_missing(self._js, letters)
            await announce_again(connection, missing)
            await keep(connection, letters[-1].id, len(missing))
        return Step(letters[-1].id, len(missing))
