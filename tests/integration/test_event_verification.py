"""Rows, events and the stream on real servers: clean where nothing was touched, and every fault named by its user."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg

from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.refill import last_position
from adapters.streams import EVENTS_STREAM
from contracts.events import chain_of, subject_of
from domain.user import User
from handlers.event_verification import StreamVerification, Verified, verify_rows
from handlers.republish import republish
from tests.integration.relaying import a_past, relayed, without_memory


async def verified(database: Database, personal: PersonalData, events_bus: Client, start: int) -> Verified:
    found = Verified()
    await verify_rows(database, personal, found, from_position=start, tell=lambda *_: None)
    await StreamVerification(database, events_bus, found, from_position=start).run(lambda *_: None)
    return found


def faults(found: Verified, user_id: UUID) -> set[tuple[str, str]]:
    return {(fault.kind, fault.says) for fault in found.faults if fault.user_id == user_id}


async def start_of(owner: asyncpg.Connection) -> int:
    await owner.execute("DELETE FROM outbox")  # of other tests
    return await last_position(owner) + 1  # type: ignore[arg-type]


async def test_what_nobody_has_touched_is_clean(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, owner: asyncpg.Connection
) -> None:
    start = await start_of(owner)
    async with relayed(database, events_bus, personal):
        for _ in range(3):
            await a_past(database, personal, trail)
    found = await verified(database, personal, events_bus, start)
    assert (found.users, found.events) == (3, 15)
    assert found.messages >= 15
    assert [fault for fault in found.faults if fault.kind != "foreign"] == []


async def edited_row(owner: asyncpg.Connection, _: Client, user: User) -> None:
    await owner.execute("UPDATE users SET role = 'admin', last_name = 'Hopper' WHERE id = $1", user.id)


async def added_event(owner: asyncpg.Connection, _: Client, user: User) -> None:
    position = await owner.fetchval(
        "INSERT INTO events (id, aggregate_id, version, type, occurred_at, data, personal, metadata) "
        "SELECT gen_random_uuid(), aggregate_id, 9, type, occurred_at, data, personal, metadata FROM events "
        "WHERE aggregate_id = $1 AND version = 1 RETURNING position", user.id,
    )  # fmt: skip
    await owner.execute("INSERT INTO outbox (position, user_id, version) VALUES ($1, $2, 9)", position, user.id)


async def the_second(js: JetStreamContext, user: User) -> RawStreamMsg:
    return await js.get_msg(EVENTS_STREAM, seq=1, subject=subject_of("EmailVerified", user.id), next=True)


async def deleted_message(_: asyncpg.Connection, events_bus: Client, user: User) -> None:
    js = events_bus.jetstream()
    await js.delete_msg(EVENTS_STREAM, (await the_second(js, user)).seq or 0)


async def again_at_the_end(_: asyncpg.Connection, events_bus: Client, user: User) -> None:
    js = events_bus.jetstream()
    message = await the_second(js, user)
    same = {"Nats-Msg-Id": (message.headers or {})["Nats-Msg-Id"]}
    async with asyncio.timeout(10):  # until the server has forgotten the id
        while (await js.publish(message.subject or "", message.data or b"", headers=same)).duplicate:
            await asyncio.sleep(0.1)


async def moved_to_the_end(_: asyncpg.Connection, events_bus: Client, user: User) -> None:
    js = events_bus.jetstream()
    first = await the_second(js, user)
    await again_at_the_end(_, events_bus, user)
    await js.delete_msg(EVENTS_STREAM, first.seq or 0)


ALL_FACTS = "bio, email, email_verified, first_name, last_name, revision, role, version"
HARM: dict[Callable[[asyncpg.Connection, Client, User], Awaitable[None]], set[tuple[str, str]]] = {
    edited_row: {("row", "the row says otherwise than the events: last_name, role")},
    added_event: {
        ("history", "version 9 cannot be read (CannotOpen)"),
        ("history", "version 9 follows 5"),
        ("history", "version 9 is UserRegistered"),
        ("row", f"the row says otherwise than the events: {ALL_FACTS}"),
    },
    deleted_message: {("missing", "version 2 is not on the stream")},
    again_at_the_end: {("twice", "version 2 stands on the stream twice")},
    moved_to_the_end: {("order", "version 3 stands on the stream before the one before it")},
}


async def test_every_harm_is_named_with_its_user(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, owner: asyncpg.Connection
) -> None:
    start, js = await start_of(owner), events_bus.jetstream()
    async with relayed(database, events_bus, personal):
        users = [await a_past(database, personal, trail) for _ in HARM]
    async with without_memory(events_bus):
        for harm, user in zip(HARM, users, strict=True):
            await harm(owner, events_bus, user)
    stranger, nobody = uuid4(), uuid4()
    await js.publish(subject_of("UserLogin", stranger), b"{}", headers={"Nats-Msg-Id": str(uuid4())})
    await owner.execute(
        "INSERT INTO events (id, aggregate_id, version, type, occurred_at, data, metadata) "
        "VALUES (gen_random_uuid(), $1, 1, 'DataExported', '2020-01-01', '{}', '{}')", nobody,
    )  # fmt: skip
    found = await verified(database, personal, events_bus, start)
    await owner.execute("DELETE FROM outbox")
    for (harm, named), user in zip(HARM.items(), users, strict=True):
        assert faults(found, user.id) == named, harm.__name__
    assert faults(found, nobody) == {("no row", "has events and no row")}
    assert [fault.says for fault in found.faults if fault.kind == "foreign" and fault.user_id is None]


async def test_a_hole_below_a_users_last_message_is_no_reason_to_put_old_behind_new(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, owner: asyncpg.Connection
) -> None:
    start, js = await start_of(owner), events_bus.jetstream()
    async with relayed(database, events_bus, personal):
        user, whole = await a_past(database, personal, trail), await a_past(database, personal, trail)
    await deleted_message(owner, events_bus, user)
    async with relayed(database, events_bus, personal):
        done = await republish(
            database, personal, js, from_position=start, dry_run=False, by="a test", tell=lambda *_: None
        )
    assert (done.users, done.events) == (2, 0)
    found = await verified(database, personal, events_bus, start)
    assert faults(found, user.id) == {("missing", "version 2 is not on the stream")}
    assert not faults(found, whole.id)
    assert (await js.get_last_msg(EVENTS_STREAM, chain_of(user.id))).seq
