"""One group's delivery of an event, on a real stream: what a stop in the middle of it leaves behind."""

import asyncio
from uuid import UUID

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from adapters.event_log import StoredEvent, Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.streams import EVENTS_STREAM, SPARE_DELIVERIES
from adapters.telemetry import Metrics
from domain.refusals import Overloaded
from handlers.delivery import Deliverer
from tests.integration.relaying import a_past, relayed

PAUSES_S = (0.1,)


class Slow:
    """A handler that ends when it is told to, tells when it has begun, and finds the database's pool full at times."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.is_overloaded = False

    async def handle(self, _: StoredEvent) -> str:
        self.begun.set()
        if self.is_overloaded:
            raise Overloaded
        await self.may_end.wait()
        return "done"


async def outcomes(rows: asyncpg.Connection, event_id: UUID) -> tuple[str | None, int]:
    """What the group has noted of an event, and how many letters stand for it."""
    done = await rows.fetchval("SELECT outcome FROM inbox WHERE group_name = 'audit' AND event_id = $1", event_id)
    return done, await rows.fetchval("SELECT count(*) FROM dead_letters WHERE event_id = $1", event_id)


@pytest.mark.parametrize("is_overloaded", [False, True], ids=["at work", "held"])
async def test_an_event_whose_processes_are_stopped_one_after_the_other_is_done_by_the_last(
    is_overloaded: bool,
    database: Database,
    owner: asyncpg.Connection,
    personal: PersonalData,
    trail: Trail,
    events_bus: Client,
) -> None:
    async with relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail)
    event_id = await owner.fetchval("SELECT id FROM events WHERE aggregate_id = $1 AND version = 1", user.id)
    subscription = await events_bus.jetstream().pull_subscribe(
        f"users.events.v1.*.{user.id}",
        durable=f"stopped-{user.id}",
        stream=EVENTS_STREAM,
        config=ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1, max_deliver=len(PAUSES_S) + 1 + SPARE_DELIVERIES
        ),
    )
    slow = Slow()
    slow.is_overloaded = is_overloaded
    audit = Deliverer(
        "audit", slow.handle, slow.handle, database, personal, Metrics(),
        pauses_s=PAUSES_S, in_order=False, wake_announcer=lambda: None,
    )  # fmt: skip
    for number in range(1, len(PAUSES_S) + SPARE_DELIVERIES):
        [message] = await subscription.fetch(1, timeout=5)
        assert message.metadata.num_delivered == number
        delivering = asyncio.create_task(audit.deliver(message))
        async with asyncio.timeout(5):
            await slow.begun.wait()
        slow.begun.clear()
        await asyncio.sleep(0.05)
        delivering.cancel()
        await asyncio.wait([delivering])
    slow.may_end.set()
    slow.is_overloaded = False
    [message] = await subscription.fetch(1, timeout=5)
    await audit.deliver(message)
    assert await outcomes(owner, event_id) == ("done", 0)
    await events_bus.jetstream().delete_consumer(EVENTS_STREAM, f"stopped-{user.id}")
