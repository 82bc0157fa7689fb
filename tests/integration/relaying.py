"""Users with a past, and a relay that announces it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from nats.aio.client import Client

from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.streams import EVENTS_STREAM
from adapters.telemetry import Metrics
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.user import User
from handlers.endings import Loops
from handlers.relay import Relay
from tests.builders import ORIGIN, a_user
from tests.program import eventually


@asynccontextmanager
async def relayed(database: Database, bus: Client, personal: PersonalData) -> AsyncIterator[None]:
    """A relay at work; at the end of the block all that was written is announced."""

    async def nothing_waits() -> bool:
        async with database.connection() as rows:
            return not await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)")

    async with Loops() as loops:
        loops.start(Relay(database, bus, personal, Metrics(), fence=True).run(), "relay")
        yield
        await eventually(nothing_waits, within_s=10, what="all to be announced")


@asynccontextmanager
async def without_memory(bus: Client) -> AsyncIterator[None]:
    """The server takes a second copy of an event, as it does two minutes after the first."""
    js = bus.jetstream()
    config = (await js.stream_info(EVENTS_STREAM)).config
    # Twice: the server may look through its memory by the old window while it takes a new one, and not again for that.
    for window_s in (0.2, 0.1):
        await js.update_stream(replace(config, duplicate_window=window_s))
        await asyncio.sleep(0.3)
    try:
        yield
    finally:
        await js.update_stream(config)


async def a_past(database: Database, personal: PersonalData, trail: Trail, *, at: datetime | None = None) -> User:
    """A user to whom several things have happened, just now unless it is said when; five events."""
    user, at = a_user(), at or datetime.now(UTC)
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        user.verify_email(reason="registration", at=at)
        assert await work.users.add(user)
        locked = await work.users.lock(user.id)
        assert locked
        locked.change({"bio": "a marked life", "first_name": "Grace"}, expected_revision=None, at=at)
        locked.refuse_password(origin=ORIGIN, at=at)
        locked.change_role("moderator", reason="a test", at=at)
        await work.users.save(locked)
        await work.commit(Empty())
    return user


async def renamed(database: Database, personal: PersonalData, trail: Trail, user: User) -> None:
    """One event more."""
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        locked = await work.users.lock(user.id)
        assert locked
        locked.change({"first_name": f"Ada {locked.version}"}, expected_revision=None, at=datetime.now(UTC))
        await work.users.save(locked)
        await work.commit(Empty())
