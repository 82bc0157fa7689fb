"""A million events, their users and their stream, verified within minutes; and a stream of some of them filled up."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
import uuid_utils.compat as uuid_utils
from nats.aio.client import Client

from adapters.embedded import EmbeddedServers
from adapters.history_replays import Stretch, count_stretch
from adapters.migrations import migrate
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database, role_of
from adapters.streams import provision
from contracts.events import subject_of
from handlers.event_verification import StreamVerification, Verified, verify_rows
from handlers.refill import EventsRefill
from tests.builders import fresh_keys, settings_of

pytestmark = pytest.mark.soak

USERS = 100_000
EVENTS_EACH = 10
AT = datetime.now(UTC)
Row = tuple[object, ...]


@pytest_asyncio.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServers]:
    directory: Path = tmp_path_factory.mktemp("million")
    async with EmbeddedServers(directory / "data", log=lambda _: None, sync_interval_always=False) as running:
        addresses = running.addresses
        await migrate(addresses.database_owner_url, app_role=role_of(addresses.database_url))
        yield running


def events_of(personal: PersonalData, user_id: UUID, wrapped: str) -> Iterator[Row]:
    """A registration, and sign-ins behind it."""
    registered = {"email": f"{user_id}@example.org", "firstName": "Ada", "lastName": "Lovelace"}
    login = {"ip": "192.0.2.7", "userAgent": "Mozilla/5.0", "deviceInfo": {"browser": "Firefox"}}
    for version in range(1, EVENTS_EACH + 1):
        event_id = uuid_utils.uuid7()
        hidden = registered if version == 1 else login
        sealed = personal.seal(
            wrapped, user_id, {"data": hidden, "ip": None, "userAgent": None}, place=f"events.personal:{event_id}"
        )
        type = "UserRegistered" if version == 1 else "UserLogin"
        yield event_id, user_id, version, type, AT, json.dumps({"userId": str(user_id)}), sealed, '{"requestId": "r"}'


async def fill(rows: asyncpg.Connection, bus: Client, personal: PersonalData) -> None:
    """Users and their events in the table and on the stream."""
    for start in range(0, USERS, 5000):
        users = [(uuid_utils.uuid7(), start + number) for number in range(5000)]
        keys = {user_id: personal.new_key(user_id) for user_id, _ in users}
        events = [event for user_id, _ in users for event in events_of(personal, user_id, keys[user_id])]
        await rows.copy_records_to_table(
            "users",
            records=[
                (id, f"{id}@example.org", f"{id}@example.org", "x", "Ada", "Lovelace", AT, EVENTS_EACH, AT, AT)
                for id, _ in users
            ],
            columns=["id", "email", "email_key", "password_hash", "first_name", "last_name", "last_password_change",
                     "version", "created_at", "updated_at"],
        )  # fmt: skip
        await rows.copy_records_to_table(
            "user_profiles", records=[(id, AT, AT) for id, _ in users], columns=["user_id", "created_at", "updated_at"]
        )
        await rows.copy_records_to_table("user_keys", records=list(keys.items()), columns=["user_id", "wrapped"])
        await rows.copy_records_to_table(
            "events", records=events,
            columns=["id", "aggregate_id", "version", "type", "occurred_at", "data", "personal", "metadata"],
        )  # fmt: skip
        for event in events:
            subject = subject_of(str(event[3]), UUID(str(event[1])))
            await bus.publish(subject, b"{}" * 300, headers={"Nats-Msg-Id": str(event[0])})
        await bus.flush(60)
    await rows.execute("INSERT INTO relay_heads (user_id, version) SELECT id, version FROM users")
    await rows.execute("ANALYZE")


@pytest.mark.timeout(3600)
async def test_a_million_events_are_verified_within_minutes(
    servers: EmbeddedServers, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    async def closed() -> None:
        return

    settings = settings_of(
        servers.addresses.database_url, nats_url=servers.addresses.nats_worker_url, statement_ms_max=25_000
    )
    bus = await connect(settings, name="test", on_closed=closed)
    await provision(bus.jetstream(), settings, ())
    personal, found = PersonalData(fresh_keys(tmp_path)), Verified()
    database = await Database.connect(settings)
    rows = await asyncpg.connect(servers.addresses.database_owner_url)
    try:
        await fill(rows, bus, personal)
        began = time.monotonic()
        await verify_rows(database, personal, found, from_position=0, tell=lambda *_: None)
        rows_s = time.monotonic() - began
        await StreamVerification(database, bus, found, from_position=0).run(lambda *_: None)
        stream_s = time.monotonic() - began - rows_s
        refill, after, looked, began = EventsRefill(database, bus.jetstream()), None, 0, time.monotonic()
        while looked < 20_000 and (step := await refill.look(after)).to is not None:
            after, looked = step.to, looked + step.users
            assert step.put_back == 0
        look_s = time.monotonic() - began
        await rows.execute("INSERT INTO inbox (group_name, event_id, outcome) SELECT 'email', id, 'sent' FROM events")
        began = time.monotonic()
        async with database.connection() as connection:
            stretch = await count_stretch(connection, Stretch("email", 0, 2**62, None, None))
        stretch_s = time.monotonic() - began
    finally:
        await rows.close()
        await database.close()
        await close(bus)
    for name, value in (
        ("events folded a second", found.events / rows_s), ("messages read a second", found.messages / stream_s),
        ("users of a refill looked at a second", looked / look_s), ("seconds to count a stretch", stretch_s),
    ):  # fmt: skip
        print(f"{name}: {value:.1f}")
        record_testsuite_property(f"verify: {name}", value)
    assert (found.users, found.events, found.messages) == (USERS, USERS * EVENTS_EACH, USERS * EVENTS_EACH)
    assert found.faults == []
    assert (stretch.already_handled, stretch.to_deliver) == (USERS * EVENTS_EACH, 0)
    assert rows_s + stream_s < 600
