"""`events republish`: what the stream has lost is put back from the table, all of it, at an operator's word."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from nats.js import JetStreamContext
from pydantic import JsonValue

from adapters.audit_log import AuditRow, add_audit_row
from adapters.bulk_users import users_counted
from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.refill import waiting_between
from adapters.stream_reader import stream_state
from adapters.streams import EVENTS_STREAM
from domain.refusals import Overloaded, Stale
from handlers.refill import EventsRefill, Step

FULL_S = 0.2
STILL_S_MAX = 15.0
"""Where fewer and fewer events wait, a relay is at work; where their number stands still for so long, none is."""
TRIES_MAX = 10


class NoStream(Exception):
    """There is nothing to put events back on."""


@dataclass(frozen=True, slots=True)
class Republished:
    """What came of it; `waiting` is what no relay has announced."""

    users: int
    events: int
    foreign: int
    waiting: int = 0


async def republish(
    database: Database, personal: PersonalData, js: JetStreamContext, *, from_position: int, dry_run: bool,
    by: str, tell: Callable[[int, int], None],
) -> Republished:  # fmt: skip
    """Look for every user's last event, put back what is missing behind it, and see it announced.

    May be cut off anywhere and begun again: what was put back by then is announced all the same.
    """
    if await stream_state(js, EVENTS_STREAM) is None:
        raise NoStream("there is no stream USER_EVENTS: start `user-service run`, which makes and fills it by itself")
    refill = EventsRefill(database, js, from_position=from_position)
    began = datetime.now(UTC)
    if not dry_run:
        await _note(database, personal, {"from": from_position, "operator": by})
    async with database.connection() as connection:
        total = await users_counted(connection)
    users = events = foreign = 0
    after: UUID | None = None
    while True:
        step = await (refill.look(after) if dry_run else _page(refill, after))
        if step is None:
            await asyncio.sleep(FULL_S)
            continue
        users, events, foreign = users + step.users, events + step.put_back, foreign + step.foreign
        tell(users, max(total, users))
        if step.to is None:
            break
        after = step.to
    return Republished(users, events, foreign, 0 if dry_run or not events else await _announced(database, began))


async def _page(refill: EventsRefill, after: UUID | None) -> Step | None:
    """One page; a user that a relay holds for long is waited for."""
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            return await refill.page(after)
        except (Overloaded, Stale):
            if not tries_left:
                raise
    raise AssertionError("the last try has returned or raised")


async def _announced(database: Database, began: datetime) -> int:
    """Wait until relays have announced what was put back; how many events wait for one that does not come."""
    until = datetime.now(UTC)
    last, still_s = -1, 0.0
    while True:
        async with database.connection() as connection:
            waiting = await waiting_between(connection, began, until)
        if waiting == 0 or still_s > STILL_S_MAX:
            return waiting
        still_s = still_s + FULL_S if waiting == last else 0.0
        last = waiting
        await asyncio.sleep(FULL_S)


async def _note(database: Database, personal: PersonalData, details: dict[str, JsonValue]) -> None:
    """Who did it, in the audit log: before it is done, since it may be cut off."""
    row = AuditRow(
        action="events_republished", success=True, at=datetime.now(UTC), resource="stream", resource_id=EVENTS_STREAM,
        details=details,
    )  # fmt: skip
    async with database.connection() as connection:
        await add_audit_row(connection, personal, Trail(request_id=f"cli-{uuid4()}"), row)
