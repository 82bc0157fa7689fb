"""Events that a relay cannot read hold up nobody but their own users."""

from pathlib import Path
from uuid import uuid4

import asyncpg

from adapters.embedded import EmbeddedServers
from adapters.event_log import Trail
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.streams import provision
from adapters.telemetry import Metrics
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.user import User
from handlers.endings import Loops
from handlers.relay import USERS_MAX, Relay
from tests.builders import a_user, fresh_keys, settings_of
from tests.program import eventually


async def add(database: Database, personal: PersonalData, trail: Trail) -> User:
    user = a_user(email=f"{uuid4().hex}@example.org")
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    return user


async def test_a_pass_full_of_unreadable_events_stops_nobody_else(
    servers: EmbeddedServers, database: Database, owner: asyncpg.Connection, personal: PersonalData, trail: Trail,
    tmp_path: Path,
) -> None:  # fmt: skip
    async def closed() -> None:
        return

    settings = settings_of(servers.addresses.database_url, nats_url=servers.addresses.nats_worker_url)
    client = await connect(settings, name="test", on_closed=closed)
    await provision(client.jetstream(), settings, ())
    await owner.execute("DELETE FROM outbox")
    of_another_ring = PersonalData(fresh_keys(tmp_path))
    stuck = [await add(database, of_another_ring, trail) for _ in range(USERS_MAX)]
    others = [await add(database, personal, trail) for _ in range(5)]
    relay = Relay(database, client, personal, Metrics(), fence=True)

    async def are_announced() -> bool:
        waiting = "SELECT count(*) FROM outbox WHERE user_id = ANY($1)"
        return not await owner.fetchval(waiting, [user.id for user in others])

    try:
        async with Loops() as loops:
            loops.start(relay.run(), "relay")
            await eventually(are_announced, within_s=10, what="the others to be announced")
            waiting = await owner.fetchval("SELECT count(DISTINCT user_id) FROM outbox")
        assert waiting == len(stuck)
    finally:
        await close(client)
        await owner.execute("DELETE FROM outbox WHERE user_id = ANY($1)", [user.id for user in stuck])
